// Package scoreboard is a client of Scoreboard: report actions, read boards, follow a live board.
//
// A Client may be used by any number of goroutines. Every call takes a context, which also ends its
// retries. Errors of the service are *ProblemError.
package scoreboard
