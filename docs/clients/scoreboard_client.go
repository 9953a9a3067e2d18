// A client of Scoreboard: update a score with retries, and watch a board.
//
//	export TOKEN=$(scoreboard token --sub alice)
//	go run scoreboard_client.go update http://127.0.0.1:8000 alice go:1
//	go run scoreboard_client.go watch http://127.0.0.1:8000 3
//
// Needs Go 1.21 and no modules. It watches over server-sent events, because the standard library
// has no WebSocket client.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	tries   = 8
	timeout = 15 * time.Second
	silence = 37 * time.Second
)

type reply struct {
	Success  bool  `json:"success"`
	NewScore int64 `json:"newScore"`
	Replayed bool  `json:"replayed"`
}

type message struct {
	Type        string          `json:"type"`
	Epoch       int64           `json:"epoch"`
	Seq         int64           `json:"seq"`
	Leaderboard json.RawMessage `json:"leaderboard"`
	Code        int             `json:"code"`
	Reason      string          `json:"reason"`
	Reconnect   *bool           `json:"reconnect"`
	DelayMS     []int64         `json:"delay_ms"`
}

func backoff(attempt int) time.Duration {
	ceiling := 500 * time.Millisecond << attempt
	if ceiling > 30*time.Second {
		ceiling = 30 * time.Second
	}
	return time.Duration(rand.Int63n(int64(ceiling)))
}

func retryAfter(response *http.Response) time.Duration {
	seconds, _ := strconv.Atoi(response.Header.Get("Retry-After"))
	return time.Duration(seconds) * time.Second
}

// update counts one action and returns the reply. Every try sends the same actionID, so the action
// counts once however often a response is lost.
func update(api, userID, actionID, token string) (reply, error) {
	client := http.Client{Timeout: timeout}
	body, _ := json.Marshal(map[string]string{"userId": userID, "actionId": actionID})
	failure := ""
	for attempt := 0; attempt < tries; attempt++ {
		wait := backoff(attempt)
		request, err := http.NewRequest("POST", api+"/api/scores/update", bytes.NewReader(body))
		if err != nil {
			return reply{}, err
		}
		request.Header.Set("Authorization", "Bearer "+token)
		request.Header.Set("Content-Type", "application/json")
		response, err := client.Do(request)
		if err != nil {
			failure = err.Error() // the outcome is unknown: the next try tells
		} else {
			text, err := io.ReadAll(response.Body)
			response.Body.Close()
			var result reply
			switch {
			case err != nil:
				failure = err.Error()
			case response.StatusCode == http.StatusOK:
				err := json.Unmarshal(text, &result)
				return result, err
			case response.StatusCode != http.StatusTooManyRequests && response.StatusCode < 500:
				return reply{}, errors.New(string(text))
			default:
				failure = string(text)
				wait += retryAfter(response)
			}
		}
		time.Sleep(wait)
	}
	return reply{}, fmt.Errorf("no answer after %d tries: %s", tries, failure)
}

// leastWait is how long to wait at least after a stream that ended with one of these codes.
var leastWait = map[int]time.Duration{1013: 5 * time.Second, 4429: 30 * time.Second}

// watch calls onBoard with each board, and again when names of it arrive, until it returns false. It
// reconnects when the connection is lost.
func watch(api, token string, onBoard func(json.RawMessage) bool) error {
	var epoch, seq int64 = 0, -1
	for failures := 0; ; failures = min(failures+1, 6) {
		delay := backoff(failures)
		request, err := http.NewRequest("GET", api+"/api/scores/stream", nil)
		if err != nil {
			return err
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		if seq >= 0 {
			request.Header.Set("Last-Event-ID", fmt.Sprintf("%d-%d", epoch, seq))
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil && response.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode != http.StatusTooManyRequests && response.StatusCode != http.StatusServiceUnavailable {
				return errors.New(string(text))
			}
			delay += retryAfter(response)
		} else if err == nil {
			idle := time.AfterFunc(silence, func() { response.Body.Close() })
			isOver, end := false, message{}
			lines := bufio.NewScanner(response.Body)
			for lines.Scan() {
				idle.Reset(silence)
				data, isData := strings.CutPrefix(lines.Text(), "data: ")
				var one message
				if !isData || json.Unmarshal([]byte(data), &one) != nil {
					continue
				}
				if one.Type == "bye" {
					end, isOver = one, one.Reconnect != nil && !*one.Reconnect
				}
				// An equal seq is the same board, with newer names.
				if one.Type != "leaderboard" || (one.Epoch == epoch && one.Seq < seq) {
					continue
				}
				epoch, seq, failures = one.Epoch, one.Seq, 0
				if !onBoard(one.Leaderboard) {
					response.Body.Close()
					return nil
				}
			}
			idle.Stop()
			response.Body.Close()
			if isOver {
				return fmt.Errorf("the server ended the stream with %d: %s", end.Code, end.Reason)
			}
			if len(end.DelayMS) == 2 && end.DelayMS[1] >= end.DelayMS[0] {
				low, high := end.DelayMS[0], end.DelayMS[1]
				delay = time.Duration(low+rand.Int63n(high-low+1)) * time.Millisecond
			}
			if least := leastWait[end.Code]; delay < least {
				delay = least + time.Duration(rand.Int63n(int64(least)))
			}
		}
		time.Sleep(delay)
	}
}

func main() {
	token, words := os.Getenv("TOKEN"), os.Args[1:]
	var err error
	switch {
	case len(words) == 4 && words[0] == "update":
		var result reply
		if result, err = update(words[1], words[2], words[3], token); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(result)
		}
	case len(words) >= 2 && words[0] == "watch":
		left := -1
		if len(words) > 2 {
			left, err = strconv.Atoi(words[2])
		}
		if err == nil {
			err = watch(words[1], token, func(board json.RawMessage) bool {
				fmt.Println(string(board))
				left--
				return left != 0
			})
		}
	default:
		err = errors.New("usage: update API USER ACTION | watch API [COUNT]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
