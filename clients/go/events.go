package scoreboard

import (
	"encoding/json"
	"errors"
	"slices"
)

// Row is a row of a live board. Names and ids are untrusted text.
type Row struct {
	Rank   int64  `json:"rank"`
	UserID string `json:"userId"`
	Name   string `json:"name,omitempty"`
	Score  int64  `json:"score"`
}

// Board is the rows of a board's window, best first; each one replaces the one before.
//
// An equal Seq within an Epoch is the same board, with newer names. Rows is the size of a window
// that was asked for; At and EndsAt are ms since 1970.
type Board struct {
	Board       string `json:"board"`
	Epoch       int64  `json:"epoch"`
	Seq         int64  `json:"seq"`
	At          int64  `json:"at"`
	Leaderboard []Row  `json:"leaderboard"`
	Offset      int    `json:"offset"`
	Rows        int    `json:"rows"`
	Viewers     *int64 `json:"viewers"`
	Season      string `json:"season"`
	EndsAt      int64  `json:"endsAt"`
}

// delta is the rows in which a board differs from the one at Base; Count is how many rows it has.
type delta struct {
	Board   string `json:"board"`
	Epoch   int64  `json:"epoch"`
	Base    int64  `json:"base"`
	Seq     int64  `json:"seq"`
	At      int64  `json:"at"`
	Count   int    `json:"count"`
	Changes []Row  `json:"changes"`
	Offset  int    `json:"offset"`
	Rows    int    `json:"rows"`
}

// appliedTo returns the board that a delta makes of the one it is based on, or false if it does
// not fit to it.
func (d delta) appliedTo(board Board) (Board, bool) {
	if board.Epoch != d.Epoch || board.Seq != d.Base || board.Offset != d.Offset || board.Rows != d.Rows {
		return Board{}, false
	}
	rows := slices.Clone(board.Leaderboard[:min(len(board.Leaderboard), d.Count)])
	for _, row := range d.Changes {
		switch at := int(row.Rank) - 1 - d.Offset; {
		case 0 <= at && at < len(rows):
			rows[at] = row
		case at == len(rows):
			rows = append(rows, row)
		default:
			return Board{}, false
		}
	}
	board.Seq, board.At, board.Leaderboard = d.Seq, d.At, rows
	return board, len(rows) == d.Count
}

// copied returns a board that its receiver may change.
func copied(board Board) Board {
	board.Leaderboard = slices.Clone(board.Leaderboard)
	board.Viewers = copiedNumber(board.Viewers)
	return board
}

func copiedNumber(number *int64) *int64 {
	if number == nil {
		return nil
	}
	value := *number
	return &value
}

// Place is where a watched user stands. Rank and Score are nil if it has no score.
//
// ToNext is the distance in points to the row ahead (nil at rank 1), ToTop that to rank 10 (nil
// within the top 10); Above and Below are up to two rows each, best first.
type Place struct {
	Board  string `json:"board"`
	Epoch  int64  `json:"epoch"`
	Seq    int64  `json:"seq"`
	At     int64  `json:"at"`
	UserID string `json:"userId"`
	Name   string `json:"name"`
	Rank   *int64 `json:"rank"`
	Score  *int64 `json:"score"`
	Total  int64  `json:"total"`
	ToNext *int64 `json:"toNext"`
	ToTop  *int64 `json:"toTop"`
	Above  []Row  `json:"above"`
	Below  []Row  `json:"below"`
}

// State is the state of a live board.
type State string

// The states of a live board.
const (
	Connecting   State = "connecting"   // before the first message
	Live         State = "live"         // the boards are current
	Stale        State = "stale"        // connected, but the server has lost its source
	Reconnecting State = "reconnecting" // the connection is lost
	Stopped      State = "stopped"      // going on is useless; Reason says why
)

// Refused is something that failed and does not end the connection, such as a message that the
// server refused.
type Refused struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Board  string `json:"board"`
}

type heartbeat struct {
	Board   string   `json:"board"`
	Epoch   *int64   `json:"epoch"`
	Seq     int64    `json:"seq"`
	Viewers *int64   `json:"viewers"`
	Exp     *float64 `json:"exp"`
}

type sourceStatus struct {
	Board string `json:"board"`
	State string `json:"state"`
}

type authExpiring struct{}

type bye struct {
	Reconnect *bool     `json:"reconnect"`
	DelayMS   []float64 `json:"delay_ms"`
}

// parse returns a message; nil for a type that is not known, which a later version may send.
func parse(text []byte) (any, error) {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, err
	}
	switch head.Type {
	case "leaderboard":
		board, err := as[Board](text)
		if err == nil && (board.Board == "" || board.Leaderboard == nil) {
			err = errors.New("a leaderboard without board or rows")
		}
		return board, err
	case "delta":
		change, err := as[delta](text)
		if err == nil && (change.Board == "" || change.Changes == nil || change.Count < 0) {
			err = errors.New("a delta without board, changes or number of rows")
		}
		return change, err
	case "place":
		return as[Place](text)
	case "heartbeat":
		return as[heartbeat](text)
	case "status":
		return as[sourceStatus](text)
	case "auth_expiring":
		return authExpiring{}, nil
	case "error":
		return as[Refused](text)
	case "bye":
		return as[bye](text)
	case "":
		return nil, errors.New("a message without a type")
	}
	return nil, nil
}

func as[T any](text []byte) (message T, err error) {
	err = json.Unmarshal(text, &message)
	return message, err
}
