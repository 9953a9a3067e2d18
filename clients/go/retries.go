package scoreboard

import (
	"context"
	"math/rand/v2"
	"time"
)

// Retries says how often a call is tried, and how long it waits between tries.
//
// A wait is Retry-After plus a random time between 0 and a ceiling, which starts at First and
// doubles up to Ceiling. A call that would have to wait longer than Longest fails at once. Zero
// values mean 8 tries, 0.5 s, 30 s and 2 minutes.
type Retries struct {
	Tries                   int
	First, Ceiling, Longest time.Duration
}

func (r Retries) withDefaults() Retries {
	return Retries{
		Tries:   either(r.Tries, 8),
		First:   either(r.First, 500*time.Millisecond),
		Ceiling: either(r.Ceiling, 30*time.Second),
		Longest: either(r.Longest, 2*time.Minute),
	}
}

// wait returns the wait after the given failure, 0 for the first.
func (r Retries) wait(failure int, least time.Duration) time.Duration {
	return least + jitter(ceiling(r.First, r.Ceiling, failure))
}

// ceiling doubles first with each failure, up to most.
func ceiling(first, most time.Duration, failures int) time.Duration {
	return min(most, first<<min(failures, 16))
}

// jitter returns a random time between 0 and a limit.
func jitter(limit time.Duration) time.Duration {
	return time.Duration(rand.Int64N(int64(limit) + 1))
}

// sleep waits until the time is over or the context ends, and returns the error of the context.
func sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// either returns the first value that is not zero.
func either[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
