// A client of Scoreboard for Unity: report actions with retries, and follow a live board.
//
// Copy this file into Assets/. It needs Unity 2020 or later and no packages. It uses .NET's own HTTP
// and WebSocket clients, which Unity does not have in WebGL builds.

using System;
using System.Collections.Generic;
using System.IO;
using System.Net.Http;
using System.Net.WebSockets;
using System.Text;
using System.Threading;
using System.Threading.Tasks;
using UnityEngine;

[Serializable]
public class ScoreboardRow
{
    public int rank;
    public string userId;
    public string name; // empty if it is not known; untrusted text, as userId is
    public long score;
}

/// <summary>A message of the server: members that its type does not have are 0 or null.</summary>
[Serializable]
public class ScoreboardMessage
{
    public string type, board, state, code, detail, userId, name;
    public long epoch, seq, score, total, toNext, toTop;
    public int rank; // of a place; 0: the user has no score
    public bool reconnect = true;
    public float[] delay_ms;
    public ScoreboardRow[] leaderboard, above, below;
}

[Serializable]
public class ScoreboardUpdate
{
    public string userId, actionId, proof;
}

[Serializable]
public class ScoreboardRequest
{
    public string type;
}

[Serializable]
public class ScoreboardWatch : ScoreboardRequest
{
    public string[] userIds;
}

[Serializable]
public class ScoreboardAuth : ScoreboardRequest
{
    public string token;
}

[Serializable]
public class ScoreboardReply
{
    public bool success, replayed, held;
    public long newScore;
}

public sealed class ScoreboardClient
{
    const int Tries = 8;
    const double LinkS = 15, SilenceS = 37, SettledS = 10;
    static readonly HashSet<int> StopCodes = new HashSet<int> { 1002, 1003, 1007, 1009, 4400, 4403, 4404 };

    readonly string api, live;
    readonly Func<bool, Task<string>> token;
    readonly HttpClient http = new HttpClient { Timeout = TimeSpan.FromSeconds(15) };
    readonly System.Random random = new System.Random();

    public event Action<ScoreboardMessage> Board, Place;

    /// <summary>connecting, live, stale, reconnecting or stopped.</summary>
    public event Action<string> State;

    /// <param name="token">returns a token; its argument says whether the one before was refused</param>
    public ScoreboardClient(string api, string live, Func<bool, Task<string>> token)
    {
        this.api = api;
        this.live = live;
        this.token = token;
    }

    /// <summary>
    /// Count one action, once. Make the actionId once, such as "win:" + Guid.NewGuid(), and keep it until
    /// this returns: after an exception call it again with the same one.
    /// </summary>
    public async Task<ScoreboardReply> Update(string userId, string actionId, CancellationToken stop)
    {
        var body = JsonUtility.ToJson(new ScoreboardUpdate { userId = userId, actionId = actionId });
        body = body.Replace(",\"proof\":\"\"", ""); // JsonUtility writes what is not set
        var wasRefused = false;
        var failure = "";
        for (var attempt = 0; attempt < Tries; attempt++)
        {
            var wait = random.NextDouble() * Math.Min(30, 0.5 * Math.Pow(2, attempt));
            try
            {
                var request = new HttpRequestMessage(HttpMethod.Post, api + "/api/scores/update");
                request.Content = new StringContent(body, Encoding.UTF8, "application/json");
                request.Headers.Add("Authorization", "Bearer " + await token(wasRefused));
                using (var response = await http.SendAsync(request, stop))
                {
                    var text = await response.Content.ReadAsStringAsync();
                    var status = (int)response.StatusCode;
                    if (status == 200) return JsonUtility.FromJson<ScoreboardReply>(text);
                    failure = text;
                    if (status == 401 && !wasRefused)
                    {
                        wasRefused = true;
                        continue;
                    }
                    if (status != 429 && status < 500) throw new InvalidOperationException(text);
                    var after = response.Headers.RetryAfter;
                    if (after != null && after.Delta.HasValue) wait += after.Delta.Value.TotalSeconds;
                }
            }
            catch (HttpRequestException error)
            {
                failure = error.Message; // the outcome is unknown: the next try tells
            }
            catch (TaskCanceledException) when (!stop.IsCancellationRequested)
            {
                failure = "no answer in time";
            }
            await Task.Delay(TimeSpan.FromSeconds(wait), stop);
        }
        throw new TimeoutException(failure);
    }

    /// <summary>Follow the board, and the places of up to five users, until stop or a final refusal.</summary>
    public async Task Follow(string[] userIds, CancellationToken stop)
    {
        long epoch = 0, seq = -1;
        var failures = 0;
        var refusals = 0;
        Show("connecting");
        while (!stop.IsCancellationRequested)
        {
            float[] delay = null; // what the server asks for, in ms
            var code = 0; // that of the close frame, if there is one
            var isOver = false;
            var hasBoard = false;
            var started = DateTime.UtcNow;
            using (var socket = new ClientWebSocket())
            {
                try
                {
                    socket.Options.AddSubProtocol("scoreboard.v1");
                    var jwt = await TokenFor(refusals > 0);
                    if (!string.IsNullOrEmpty(jwt)) socket.Options.SetRequestHeader("Authorization", "Bearer " + jwt);
                    await Limited(LinkS, stop, limit => socket.ConnectAsync(new Uri(live), limit));
                    if (userIds.Length > 0)
                        await Send(socket, new ScoreboardWatch { type = "watch", userIds = userIds }, stop);
                    string text;
                    while ((text = await Receive(socket, stop)) != null)
                    {
                        var message = JsonUtility.FromJson<ScoreboardMessage>(text);
                        switch (message.type)
                        {
                            case "leaderboard":
                                Show("live");
                                hasBoard = true;
                                // An equal seq is the same board, with newer names.
                                if (message.epoch == epoch && message.seq < seq) break;
                                epoch = message.epoch;
                                seq = message.seq;
                                Board?.Invoke(message);
                                break;
                            case "place":
                                Place?.Invoke(message);
                                break;
                            case "status":
                                Show(message.state);
                                break;
                            case "auth_expiring":
                                await Send(socket, new ScoreboardAuth { type = "auth", token = await TokenFor(true) }, stop);
                                break;
                            case "bye":
                                isOver = !message.reconnect;
                                if (message.delay_ms != null && message.delay_ms.Length == 2) delay = message.delay_ms;
                                break;
                        }
                    }
                    code = (int)(socket.CloseStatus ?? 0);
                }
                catch (Exception error) when (error is WebSocketException || error is IOException || error is TimeoutException)
                {
                    // Reconnect below. Unity does not tell why a handshake was refused.
                }
            }
            if (hasBoard && (DateTime.UtcNow - started).TotalSeconds > SettledS) failures = refusals = 0;
            if (code == 4401) refusals++;
            if (isOver || StopCodes.Contains(code) || refusals > 1) break;
            var wait = random.NextDouble() * Math.Min(30, 0.5 * Math.Pow(2, Math.Min(failures, 6)));
            failures++;
            if (delay != null) wait = (delay[0] + random.NextDouble() * (delay[1] - delay[0])) / 1000;
            if (code == 1013) wait += 5;
            if (code == 4429) wait += 30;
            Show("reconnecting");
            await Task.Delay(TimeSpan.FromSeconds(wait), stop);
        }
        Show("stopped");
    }

    /// <summary>Return a token; a provider that fails is like a lost connection.</summary>
    async Task<string> TokenFor(bool wasRefused)
    {
        try
        {
            return await token(wasRefused);
        }
        catch (Exception error)
        {
            throw new IOException("no token: " + error.Message, error);
        }
    }

    string shown;

    void Show(string state)
    {
        if (state == shown) return;
        shown = state;
        State?.Invoke(state);
    }

    static Task Send(ClientWebSocket socket, ScoreboardRequest message, CancellationToken stop)
    {
        var bytes = new ArraySegment<byte>(Encoding.UTF8.GetBytes(JsonUtility.ToJson(message)));
        return Limited(LinkS, stop, limit => socket.SendAsync(bytes, WebSocketMessageType.Text, true, limit));
    }

    /// <summary>Do something that would not end on a dead network, with a time limit.</summary>
    static async Task Limited(double seconds, CancellationToken stop, Func<CancellationToken, Task> act)
    {
        using (var limit = CancellationTokenSource.CreateLinkedTokenSource(stop))
        {
            limit.CancelAfter(TimeSpan.FromSeconds(seconds));
            try
            {
                await act(limit.Token);
            }
            catch (OperationCanceledException) when (!stop.IsCancellationRequested)
            {
                throw new TimeoutException();
            }
        }
    }

    /// <summary>Return the next message, or null when the server closes. Silence is a lost connection.</summary>
    static async Task<string> Receive(ClientWebSocket socket, CancellationToken stop)
    {
        var buffer = new ArraySegment<byte>(new byte[8192]);
        using (var whole = new MemoryStream())
        {
            var isClosed = false;
            await Limited(SilenceS, stop, async limit =>
            {
                WebSocketReceiveResult part;
                do
                {
                    part = await socket.ReceiveAsync(buffer, limit);
                    isClosed = part.MessageType == WebSocketMessageType.Close;
                    whole.Write(buffer.Array, 0, part.Count);
                } while (!isClosed && !part.EndOfMessage);
            });
            return isClosed ? null : Encoding.UTF8.GetString(whole.ToArray());
        }
    }
}
