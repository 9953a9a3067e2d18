package scoreboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// streamer accepts viewers, sends them a board and the given messages, and waits until they leave.
func streamer(t *testing.T, messages ...string) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: subprotocols})
		if err != nil {
			return
		}
		defer conn.CloseNow()
		board := `{"type":"leaderboard","board":"main","epoch":1,"seq":1,"leaderboard":[]}`
		for _, message := range append([]string{board}, messages...) {
			if conn.Write(r.Context(), websocket.MessageText, []byte(message)) != nil {
				return
			}
		}
		for {
			if _, _, err := conn.Read(r.Context()); err != nil {
				return
			}
		}
	}))
	t.Cleanup(server.Close)
	return server
}

func client(t *testing.T, server *httptest.Server, options Options) *Client {
	t.Helper()
	options.LiveURL = "ws" + strings.TrimPrefix(server.URL, "http")
	client, err := New(server.URL, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// eventually waits until a condition holds.
func eventually(t *testing.T, holds func() bool, what string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func TestALiveBoardLeavesNoGoroutine(t *testing.T) {
	server := streamer(t, `{"type":"auth_expiring"}`)
	// The provider hangs in the renewal, which must end with the connection.
	provider := func(ctx context.Context, why TokenReason) (string, error) {
		if why == TokenExpiring {
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "token", nil
	}
	live := client(t, server, Options{TokenProvider: provider})
	before := runtime.NumGoroutine()
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		board := live.Live(LiveOptions{OnBoard: func(Board) { cancel() }})
		if err := board.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		cancel()
	}
	live.Close()
	eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, "goroutines are left")
}

func TestACallbackMayUseTheBoard(t *testing.T) {
	server := streamer(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var board *LiveBoard
	board = client(t, server, Options{}).Live(LiveOptions{OnBoard: func(Board) {
		board.Watch("ada")
		board.Subscribe("weekly", Window{})
		board.Unsubscribe("weekly")
		cancel()
	}})
	if err := board.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestTheContextEndsTheRetries(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := client(t, server, Options{}).Update(ctx, UpdateRequest{UserID: "a", ActionID: "win:1"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestAProblemHasItsKindAndMembers(t *testing.T) {
	for status, kind := range map[int]error{
		401: ErrUnauthenticated, 403: ErrForbidden, 404: ErrNotFound, 409: ErrConflict,
		429: ErrRateLimited, 500: ErrUnavailable, 503: ErrUnavailable,
	} {
		body := fmt.Sprintf(`{"type":"/docs/problems/x","title":"X","detail":"d","status":%d,
			"scores":{"main":{"score":3,"replayed":false}}}`, status)
		err := error(problemOf(status, http.Header{"Retry-After": {"2"}}, []byte(body)))
		var problem *ProblemError
		if !errors.As(err, &problem) || !errors.Is(err, kind) || errors.Is(err, errors.New("another")) {
			t.Fatal(status, err)
		}
		if problem.Code() != "x" || problem.Scores["main"].Score != 3 {
			t.Fatal(problem)
		}
		if isTemporary := status == 429 || status >= 500; (problem.RetryAfter == 2*time.Second) != isTemporary {
			t.Fatal(status, problem.RetryAfter)
		}
	}
	if problemOf(418, http.Header{}, []byte("<html>")).Code() != "418" {
		t.Fatal("an answer that is not a problem document")
	}
}

func TestABackOffIsRandomAndBounded(t *testing.T) {
	retries := Retries{}.withDefaults()
	for failures := range 40 {
		seen := map[time.Duration]bool{}
		for range 50 {
			wait := retries.wait(failures, time.Second)
			if wait < time.Second || wait > time.Second+ceiling(500*time.Millisecond, 30*time.Second, failures) {
				t.Fatal(failures, wait)
			}
			seen[wait] = true
		}
		if len(seen) < 10 {
			t.Fatal("not random")
		}
	}
}

func TestMessagesKeepTheirNumbers(t *testing.T) {
	text := `{"type":"place","board":"main","epoch":3,"seq":9007199254740993,"userId":"a","rank":null,"score":null}`
	message, err := parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if place := message.(Place); place.Seq != 9007199254740993 || place.Rank != nil {
		encoded, _ := json.Marshal(place)
		t.Fatal(string(encoded))
	}
}
