package scoreboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Kinds of problems, for errors.Is.
var (
	ErrUnauthenticated = errors.New("no valid token")                    // 401, also after a renewal
	ErrForbidden       = errors.New("not allowed, banned, or no proof")  // 403
	ErrNotFound        = errors.New("no such board, user or season")     // 404
	ErrConflict        = errors.New("the action or its board conflicts") // 409
	ErrRateLimited     = errors.New("too many requests")                 // 429, also after the waits
	ErrUnavailable     = errors.New("the service is unavailable")        // 5xx, also after all tries
)

var kinds = map[int]error{
	http.StatusUnauthorized:    ErrUnauthenticated,
	http.StatusForbidden:       ErrForbidden,
	http.StatusNotFound:        ErrNotFound,
	http.StatusConflict:        ErrConflict,
	http.StatusTooManyRequests: ErrRateLimited,
}

// ProblemError is a refusal of the service: a problem document (RFC 9457).
type ProblemError struct {
	UpdateProblem
	// IsTemporary: the same request may succeed after RetryAfter.
	IsTemporary bool
	RetryAfter  time.Duration
}

func (e *ProblemError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Status, e.Title, e.Detail)
}

// Code is the last part of the problem's type, such as "action-conflict", or the status if the
// answer was not a problem document.
func (e *ProblemError) Code() string {
	return e.Type[strings.LastIndexByte(e.Type, '/')+1:]
}

// Is compares with the kinds of problems, such as ErrRateLimited.
func (e *ProblemError) Is(target error) bool {
	if e.Status >= http.StatusInternalServerError {
		return target == ErrUnavailable
	}
	return target == kinds[int(e.Status)]
}

// NoAnswerError means that no try got an answer. An update may have been counted: repeat it with
// its ActionID.
type NoAnswerError struct{ Err error }

func (e *NoAnswerError) Error() string { return "no answer: " + e.Err.Error() }

func (e *NoAnswerError) Unwrap() error { return e.Err }

// StoppedError means that a live board has stopped because going on is useless.
type StoppedError struct {
	Reason  string
	Code    int           // the close code; 0 without one
	Problem *ProblemError // of a refused handshake
}

func (e *StoppedError) Error() string {
	if e.Problem != nil {
		return e.Problem.Error()
	}
	return fmt.Sprintf("%s (%d)", e.Reason, e.Code)
}

func (e *StoppedError) Unwrap() error {
	if e.Problem != nil {
		return e.Problem
	}
	return nil
}

// problemOf reads the problem of a response that is not a success.
func problemOf(status int, header http.Header, body []byte) *ProblemError {
	problem := &ProblemError{}
	if json.Unmarshal(body, &problem.UpdateProblem) != nil || problem.Type == "" {
		problem.UpdateProblem = UpdateProblem{
			Type:      strconv.Itoa(status),
			Title:     "The answer is not a problem document",
			Detail:    string(body[:min(len(body), 200)]),
			RequestID: header.Get("X-Request-Id"),
		}
	}
	problem.Status = int64(status)
	problem.IsTemporary = status == http.StatusTooManyRequests || status >= http.StatusInternalServerError
	if problem.IsTemporary {
		// The service and Kong send no dates.
		seconds, _ := strconv.ParseUint(header.Get("Retry-After"), 10, 31)
		problem.RetryAfter = time.Duration(seconds) * time.Second
	}
	return problem
}
