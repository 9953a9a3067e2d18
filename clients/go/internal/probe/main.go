// The probe runs the client as the JSON document in its first argument says, and prints what comes
// of it, one JSON document a line. tests/clients runs it beside the same program in Python.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	scoreboard "scoreboard.example/client"
)

type seconds float64

func (s seconds) duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

type window struct {
	Board  string
	Rows   int
	Offset int
}

type order struct {
	Do       string
	URL      string
	LiveURL  string
	Token    string
	Tokens   []string
	TimeoutS seconds
	Retries  struct {
		Tries                      int
		FirstS, CeilingS, LongestS seconds
	}
	Patience struct {
		FirstMessageS, SilenceS, SettledS, SyncS, RenewalS, FirstWaitS, CeilingS seconds
	}
	Action    scoreboard.UpdateRequest
	Updates   []scoreboard.UpdateItem
	UserID    string
	Board     string
	Rows      int
	Offset    int
	Watch     []string
	Subscribe []window
}

// command is a line of standard input.
type command struct {
	Watch       *[]string
	Subscribe   *window
	Unsubscribe string
	Close       bool
}

var printing sync.Mutex

func show(event string, members map[string]any) {
	printing.Lock()
	defer printing.Unlock()
	members["event"] = event
	text, err := json.Marshal(members)
	check(err)
	fmt.Println(string(text))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var o order
	check(json.Unmarshal([]byte(os.Args[1]), &o))
	if o.Do == "proof" {
		sign(o)
		return
	}
	options := scoreboard.Options{
		Token:   o.Token,
		LiveURL: o.LiveURL,
		Timeout: o.TimeoutS.duration(),
		Retries: scoreboard.Retries{
			Tries: o.Retries.Tries, First: o.Retries.FirstS.duration(),
			Ceiling: o.Retries.CeilingS.duration(), Longest: o.Retries.LongestS.duration(),
		},
	}
	if o.Tokens != nil {
		options.TokenProvider = func(_ context.Context, why scoreboard.TokenReason) (string, error) {
			show("token", map[string]any{"reason": why})
			token := o.Tokens[0]
			if len(o.Tokens) > 1 {
				o.Tokens = o.Tokens[1:]
			}
			if token == "fail" {
				return "", errors.New("the issuer is unavailable")
			}
			return token, nil
		}
	}
	client, err := scoreboard.New(o.URL, options)
	check(err)
	defer client.Close()
	ctx := context.Background()
	switch o.Do {
	case "update":
		reply, err := client.Update(ctx, o.Action)
		if err == nil {
			show("reply", map[string]any{"newScore": reply.NewScore, "replayed": reply.Replayed})
		} else {
			showError(err)
		}
	case "many":
		results, err := client.UpdateMany(ctx, o.Updates)
		if err != nil {
			showError(err)
			return
		}
		outcomes := make([]string, len(results))
		for number, result := range results {
			outcomes[number] = result.Outcome
			if result.Problem.Type != "" {
				outcomes[number] = result.Problem.Type
			}
		}
		show("results", map[string]any{"outcomes": outcomes})
	case "reads":
		check(read(ctx, client, o))
	case "live":
		live(ctx, client, o)
	}
}

func showError(err error) {
	members := map[string]any{"status": 0, "code": ""}
	var problem *scoreboard.ProblemError
	var lost *scoreboard.NoAnswerError
	switch {
	case errors.As(err, &problem):
		members["status"], members["code"] = problem.Status, problem.Code()
	case errors.As(err, &lost):
		members["code"] = "no-answer"
	default:
		members["code"] = err.Error()
	}
	show("error", members)
}

// read reads everything that can be read of a user.
func read(ctx context.Context, client *scoreboard.Client, o order) error {
	board, err := client.Leaderboard(ctx, scoreboard.LeaderboardQuery{Board: o.Board})
	if err != nil {
		return err
	}
	row := board.Leaderboard[0]
	standing, err := client.Standing(ctx, o.UserID, scoreboard.StandingQuery{Around: 1})
	if err != nil {
		return err
	}
	own, err := client.OwnStanding(ctx, scoreboard.StandingQuery{})
	if err != nil {
		return err
	}
	standings, err := client.Standings(ctx, []string{o.UserID, "nobody"}, scoreboard.BoardQuery{})
	if err != nil {
		return err
	}
	rank, err := client.RankOfScore(ctx, 0, scoreboard.BoardQuery{})
	if err != nil {
		return err
	}
	cutoff, err := client.Cutoff(ctx, 1, scoreboard.BoardQuery{})
	if err != nil {
		return err
	}
	seasons, err := client.Seasons(ctx, scoreboard.PageQuery{Board: "league"})
	if err != nil {
		return err
	}
	history, err := client.History(ctx, o.UserID, scoreboard.PageQuery{Limit: 1})
	if err != nil {
		return err
	}
	boards, err := client.Boards(ctx, 1, "")
	if err != nil {
		return err
	}
	one, err := client.Board(ctx, "main")
	if err != nil {
		return err
	}
	show("reads", map[string]any{
		"row":        []any{row.Rank, row.UserID, row.Name, row.Score},
		"neighbours": len(standing.Neighbours),
		"own":        own.Rank,
		"standings":  []any{standings.Users[0].Place, standings.NotFound},
		"rank":       rank.Rank,
		"cutoff":     *cutoff.Score,
		"season":     seasons.Seasons[0].State,
		"history":    history.History[0].ActionID,
		"boards":     []any{boards.Boards[0].Name, boards.Next},
		"operator":   one.Rules.Operator,
	})
	return nil
}

func live(ctx context.Context, client *scoreboard.Client, o order) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := o.Patience
	board := client.Live(scoreboard.LiveOptions{
		Board:  o.Board,
		Window: scoreboard.Window{Rows: o.Rows, Offset: o.Offset},
		Watch:  o.Watch,
		OnBoard: func(b scoreboard.Board) {
			rows := [][]any{}
			for _, row := range b.Leaderboard {
				rows = append(rows, []any{row.Rank, row.UserID, row.Name, row.Score})
			}
			show("board", map[string]any{
				"board": b.Board, "position": []int64{b.Epoch, b.Seq}, "rows": rows, "offset": b.Offset,
				"viewers": b.Viewers, "season": b.Season,
			})
			slices.Reverse(b.Leaderboard) // later boards must not notice
		},
		OnPlace: func(p scoreboard.Place) {
			show("place", map[string]any{
				"userId": p.UserID, "rank": p.Rank, "score": p.Score, "toNext": p.ToNext, "toTop": p.ToTop,
				"around": []int{len(p.Above), len(p.Below)},
			})
		},
		OnStatus: func(s scoreboard.Status) {
			show("status", map[string]any{
				"state": s.State, "reason": s.Reason, "code": s.Code, "attempt": s.Attempt,
				"wait": s.RetryIn.Seconds(), "stale": append([]string{}, s.Stale...),
			})
		},
		OnViewers: func(board string, viewers *int64) {
			show("viewers", map[string]any{"board": board, "viewers": viewers})
		},
		OnRefused: func(r scoreboard.Refused) { show("refused", map[string]any{"code": r.Code}) },
		Patience: scoreboard.Patience{
			FirstMessage: p.FirstMessageS.duration(), Silence: p.SilenceS.duration(),
			Settled: p.SettledS.duration(), Sync: p.SyncS.duration(), Renewal: p.RenewalS.duration(),
			FirstWait: p.FirstWaitS.duration(), Ceiling: p.CeilingS.duration(),
		},
	})
	for _, one := range o.Subscribe {
		board.Subscribe(one.Board, scoreboard.Window{Rows: one.Rows, Offset: one.Offset})
	}
	go obey(board, cancel)
	err := board.Run(ctx)
	var stopped *scoreboard.StoppedError
	if errors.As(err, &stopped) {
		status := int64(0)
		if stopped.Problem != nil {
			status = stopped.Problem.Status
		}
		show("end", map[string]any{"reason": stopped.Reason, "code": stopped.Code, "status": status})
		return
	}
	show("end", map[string]any{"reason": "closed", "code": 0, "status": 0})
}

// obey follows the commands of standard input.
func obey(board *scoreboard.LiveBoard, cancel func()) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var c command
		check(json.Unmarshal(lines.Bytes(), &c))
		switch {
		case c.Watch != nil:
			board.Watch(*c.Watch...)
		case c.Subscribe != nil:
			board.Subscribe(c.Subscribe.Board, scoreboard.Window{Rows: c.Subscribe.Rows, Offset: c.Subscribe.Offset})
		case c.Unsubscribe != "":
			board.Unsubscribe(c.Unsubscribe)
		case c.Close:
			cancel()
		}
	}
}

// sign prints a key set and a proof that a key of the file in URL signs.
func sign(o order) {
	text, err := os.ReadFile(o.URL)
	check(err)
	key, err := scoreboard.NewProofKey(text)
	check(err)
	set, err := key.KeySet()
	check(err)
	proof, err := key.Sign(scoreboard.Proof{
		UserID: o.Action.UserID, ActionID: o.Action.ActionID, Points: *o.Action.Points,
		Boards: o.Action.Boards,
	})
	check(err)
	show("proof", map[string]any{"keySet": string(set), "proof": proof})
}
