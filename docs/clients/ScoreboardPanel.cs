// Shows the top 10 and the player's own place in a Unity scene. Needs ScoreboardClient.cs.

using System;
using System.Threading;
using System.Threading.Tasks;
using UnityEngine;

public class ScoreboardPanel : MonoBehaviour
{
    [SerializeField] string api = "https://scores.example.com";
    [SerializeField] string live = "wss://scores.example.com/ws/scoreboard";
    [SerializeField] string userId = "alice";

    readonly CancellationTokenSource stop = new CancellationTokenSource();
    ScoreboardClient client;

    async void Start()
    {
        client = new ScoreboardClient(api, live, PlayerToken);
        client.State += state => Debug.Log("scoreboard: " + state);
        client.Board += board =>
        {
            foreach (var row in board.leaderboard)
                Debug.Log(row.rank + ". " + (string.IsNullOrEmpty(row.name) ? row.userId : row.name) + " " + row.score);
        };
        client.Place += place => Debug.Log(place.rank == 0
            ? "You have no score yet"
            : "You are " + place.rank + " of " + place.total + ", " + place.toNext + " points to the next");
        try
        {
            await client.Follow(new[] { userId }, stop.Token);
        }
        catch (OperationCanceledException)
        {
            // The scene has ended.
        }
    }

    /// <summary>Call this when the player wins.</summary>
    public async void ReportWin()
    {
        var reply = await client.Update(userId, "win:" + Guid.NewGuid(), stop.Token);
        Debug.Log("score: " + reply.newScore);
    }

    void OnDestroy()
    {
        stop.Cancel();
    }

    /// <summary>Return the token of the signed-in player; isRefused: get a new one.</summary>
    Task<string> PlayerToken(bool isRefused)
    {
        return Task.FromResult(Environment.GetEnvironmentVariable("TOKEN"));
    }
}
