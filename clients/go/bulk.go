package scoreboard

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"
)

const (
	bulkActions = 100
	bulkBytes   = 16_000 // a body may have 16 KiB
)

// UpdateMany counts any number of actions, each by itself, and returns a result for each, in order.
// It needs the scope of game servers.
//
// Actions that may succeed later are sent again. A result whose Problem has a Type was refused; one
// that also has RetryAfter may succeed later. After an error, call it again with the same actions.
func (c *Client) UpdateMany(ctx context.Context, updates []UpdateItem) ([]BulkResult, error) {
	results := make([]BulkResult, len(updates))
	pending := make([]int, len(updates))
	for number := range pending {
		pending[number] = number
	}
	for attempt := range c.retries.Tries {
		parts, err := divide(updates, pending)
		if err != nil {
			return nil, err
		}
		for _, part := range parts {
			request := BulkRequest{}
			for _, number := range part {
				request.Updates = append(request.Updates, updates[number])
			}
			reply, err := call[BulkReply](ctx, c, "/api/scores/updates", nil, request)
			if err != nil {
				return nil, err
			}
			if len(reply.Results) != len(part) {
				return nil, errors.New("the answer has another number of results")
			}
			for at, number := range part {
				results[number] = reply.Results[at]
			}
		}
		least := int64(0)
		pending = slices.DeleteFunc(pending, func(number int) bool {
			after := results[number].RetryAfter
			if after != nil {
				least = max(least, *after)
			}
			return after == nil
		})
		wait := c.retries.wait(attempt, time.Duration(least)*time.Second)
		if len(pending) == 0 || attempt+1 == c.retries.Tries || wait > c.retries.Longest {
			break
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// divide divides actions into requests that the service accepts.
func divide(updates []UpdateItem, numbers []int) (parts [][]int, err error) {
	size := bulkBytes
	for _, number := range numbers {
		text, err := json.Marshal(updates[number])
		if err != nil {
			return nil, err
		}
		last := len(parts) - 1
		if size+len(text)+1 > bulkBytes || len(parts[last]) == bulkActions {
			parts, last = append(parts, nil), last+1
			size = len(`{"updates":[]}`)
		}
		parts[last] = append(parts[last], number)
		size += len(text) + 1
	}
	return parts, nil
}
