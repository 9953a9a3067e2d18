package scoreboard

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Version is that of the service whose API this package knows.
const Version = "0.1.0"

// Options of a client; all can be left out.
type Options struct {
	Token         string        // a JWT that is not renewed
	TokenProvider TokenProvider // returns a current token, in place of Token
	LiveURL       string        // of the streamer; default: /ws/scoreboard of the client's URL
	Timeout       time.Duration // of one try and of a handshake; default: 15 s
	Retries       Retries
	HTTPClient    *http.Client // default: one with its own connections
}

// Client is a client of one deployment.
type Client struct {
	url, liveURL string
	http         *http.Client
	timeout      time.Duration
	retries      Retries
	tokens       *tokens
}

// New returns a client of the deployment at an http or https URL.
func New(address string, options Options) (*Client, error) {
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if parsed.Host == "" || (parsed.Scheme != "http" && parsed.Scheme != "https") {
		return nil, fmt.Errorf("not an http or https URL: %q", address)
	}
	base := strings.TrimRight(address, "/")
	client := &Client{
		url:     base,
		liveURL: either(options.LiveURL, "ws"+strings.TrimPrefix(base, "http")+"/ws/scoreboard"),
		http:    options.HTTPClient,
		timeout: either(options.Timeout, 15*time.Second),
		retries: options.Retries.withDefaults(),
		tokens:  newTokens(options.Token, options.TokenProvider),
	}
	if client.http == nil {
		client.http = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	}
	return client, nil
}

// Close closes idle connections. Live boards end with their contexts.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// NewActionID returns a unique ActionID of a kind, such as "win". Keep it until the action is
// counted.
func NewActionID(kind string) string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // it never fails: the documentation of crypto/rand
	return fmt.Sprintf("%s:%x", kind, random)
}

// Update counts one action, once. All tries send the same ActionID; after a NoAnswerError,
// ErrUnavailable or ErrRateLimited, call it again later with the same one.
func (c *Client) Update(ctx context.Context, action UpdateRequest) (*UpdateReply, error) {
	return call[UpdateReply](ctx, c, "/api/scores/update", nil, action)
}

// LeaderboardQuery selects rows; Limit is 1 to 100, default 10.
type LeaderboardQuery struct {
	Board, Season string
	Limit, Offset int
	WithoutNames  bool
}

// Leaderboard returns rows of a board.
func (c *Client) Leaderboard(ctx context.Context, q LeaderboardQuery) (*LeaderboardReply, error) {
	return call[LeaderboardReply](ctx, c, "/api/scores/leaderboard", query(
		"board", q.Board, "season", q.Season, "limit", q.Limit, "offset", q.Offset,
		"names", !q.WithoutNames,
	), nil)
}

// StandingQuery selects a board, and the number of neighbours on each side, 0 to 25.
type StandingQuery struct {
	Board, Season string
	Around        int
}

// Standing returns the rank and score of a user.
func (c *Client) Standing(ctx context.Context, userID string, q StandingQuery) (*StandingReply, error) {
	path := "/api/scores/users/" + url.PathEscape(userID)
	return call[StandingReply](ctx, c, path, query("board", q.Board, "season", q.Season, "around", q.Around), nil)
}

// OwnStanding returns the standing of the token's user.
func (c *Client) OwnStanding(ctx context.Context, q StandingQuery) (*StandingReply, error) {
	path := "/api/scores/me"
	return call[StandingReply](ctx, c, path, query("board", q.Board, "season", q.Season, "around", q.Around), nil)
}

// BoardQuery selects a board, and of one with seasons the season; default: the current one.
type BoardQuery struct{ Board, Season string }

// Standings returns the standings of up to 100 users, best first, with names.
func (c *Client) Standings(ctx context.Context, userIDs []string, q BoardQuery) (*StandingsReply, error) {
	return call[StandingsReply](ctx, c, "/api/scores/users", query(
		"ids", strings.Join(userIDs, ","), "board", q.Board, "season", q.Season, "names", true,
	), nil)
}

// RankOfScore returns the rank that a user who reached this score now would get.
func (c *Client) RankOfScore(ctx context.Context, score int64, q BoardQuery) (*ScoreRankReply, error) {
	values := query("board", q.Board, "season", q.Season)
	values.Set("score", fmt.Sprint(score))
	return call[ScoreRankReply](ctx, c, "/api/scores/rank", values, nil)
}

// Cutoff returns the score at a rank, and the score that takes it.
func (c *Client) Cutoff(ctx context.Context, rank int, q BoardQuery) (*CutoffReply, error) {
	values := query("board", q.Board, "season", q.Season, "rank", rank)
	return call[CutoffReply](ctx, c, "/api/scores/cutoff", values, nil)
}

// PageQuery selects a page: Limit is 1 to 100, Before is Next of the page before.
type PageQuery struct {
	Board, Before string
	Limit         int
}

// Seasons returns the seasons of a board, latest first.
func (c *Client) Seasons(ctx context.Context, q PageQuery) (*SeasonsReply, error) {
	values := query("board", q.Board, "limit", q.Limit, "before", q.Before)
	return call[SeasonsReply](ctx, c, "/api/scores/seasons", values, nil)
}

// History returns the counted actions of a user, latest first.
func (c *Client) History(ctx context.Context, userID string, q PageQuery) (*HistoryReply, error) {
	path := "/api/scores/users/" + url.PathEscape(userID) + "/history"
	values := query("board", q.Board, "limit", q.Limit, "before", q.Before)
	return call[HistoryReply](ctx, c, path, values, nil)
}

// Boards returns up to limit boards and their rules, by name; after is Next of the page before.
func (c *Client) Boards(ctx context.Context, limit int, after string) (*BoardsReply, error) {
	return call[BoardsReply](ctx, c, "/api/boards", query("limit", limit, "after", after), nil)
}

// Board returns a board and its rules.
func (c *Client) Board(ctx context.Context, name string) (*BoardReply, error) {
	return call[BoardReply](ctx, c, "/api/boards/"+url.PathEscape(name), nil, nil)
}

// query returns the parameters that are not zero.
func query(pairs ...any) url.Values {
	values := url.Values{}
	for at := 0; at < len(pairs); at += 2 {
		switch value := pairs[at+1]; value {
		case "", 0, false:
		default:
			values.Set(pairs[at].(string), fmt.Sprint(value))
		}
	}
	return values
}

// call sends a request until it is answered. Every try is the same request, so that an action
// counts once. A body makes it a POST.
func call[T any](ctx context.Context, c *Client, path string, values url.Values, body any) (*T, error) {
	var payload []byte
	if body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	address := c.url + path
	if len(values) > 0 {
		address += "?" + values.Encode()
	}
	token, err := c.tokens.get(ctx, "", "")
	isRenewed := false
	for failures := 0; err == nil; {
		reply := new(T)
		failure := c.try(ctx, address, token, payload, reply)
		if failure == nil {
			return reply, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(failure, ErrUnauthenticated) && !isRenewed {
			isRenewed = true
			newer, renewal := c.tokens.get(ctx, TokenRejected, token)
			if renewal != nil {
				return nil, renewal
			}
			if newer != "" && newer != token {
				token = newer
				continue
			}
		}
		least, isTemporary := leastWait(failure)
		wait := c.retries.wait(failures, least)
		failures++
		if !isTemporary || failures >= c.retries.Tries || wait > c.retries.Longest {
			return nil, failure
		}
		if err = sleep(ctx, wait); err == nil {
			token, err = c.tokens.get(ctx, "", "")
		}
	}
	return nil, err
}

// try sends a request once, and decodes the answer of a success.
func (c *Client) try(ctx context.Context, address, token string, payload []byte, reply any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	method := http.MethodGet
	if payload != nil {
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(payload))
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/json")
	if payload != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return &NoAnswerError{err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return &NoAnswerError{err}
	}
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return problemOf(response.StatusCode, response.Header, body)
	}
	if err := json.Unmarshal(body, reply); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return &NoAnswerError{err} // it was cut
		}
		return err
	}
	return nil
}

// leastWait returns how long to wait at least before the next try, and whether one is useful.
func leastWait(failure error) (time.Duration, bool) {
	var problem *ProblemError
	if errors.As(failure, &problem) {
		return problem.RetryAfter, problem.IsTemporary
	}
	var lost *NoAnswerError
	return 0, errors.As(failure, &lost)
}
