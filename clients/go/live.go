package scoreboard

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// subprotocols prefers the compact form; earlier servers have only the other.
var subprotocols = []string{"scoreboard.v1.delta", "scoreboard.v1"}

const (
	// frameBytes limits a message: 100 rows with the longest ids and names fit.
	frameBytes = 1 << 20
	// longestWait is the longest wait that a server can ask for.
	longestWait = 2 * time.Minute
	// noCloseFrame is the close code of a connection that ended without a close frame.
	noCloseFrame = 1006
)

// Patience has the times of a live board. A connection that delivered a board and lasted Settled
// resets the back-off. Zero values mean the times of the protocol.
type Patience struct {
	FirstMessage time.Duration // 10 s
	Silence      time.Duration // 37 s
	Settled      time.Duration // 10 s
	Sync         time.Duration // 2 s
	Renewal      time.Duration // 10 s
	FirstWait    time.Duration // 0.5 s
	Ceiling      time.Duration // 30 s
}

func (p Patience) withDefaults() Patience {
	return Patience{
		FirstMessage: either(p.FirstMessage, 10*time.Second),
		Silence:      either(p.Silence, 37*time.Second),
		Settled:      either(p.Settled, 10*time.Second),
		Sync:         either(p.Sync, 2*time.Second),
		Renewal:      either(p.Renewal, 10*time.Second),
		FirstWait:    either(p.FirstWait, 500*time.Millisecond),
		Ceiling:      either(p.Ceiling, 30*time.Second),
	}
}

// renewals is how often a new token is asked for on one connection.
const renewals = 4

// Window is the rows of a board to show: Rows is 10 to 100.
type Window struct{ Rows, Offset int }

var defaultWindow = Window{Rows: 10}

// Status is the state of the connection.
//
// Stale names the boards that may be outdated; with one, the state is Stale. Attempt counts
// failures in a row, and RetryIn is the wait before the next try. Code is a close code, or 0.
type Status struct {
	State   State
	Reason  string
	Code    int
	Attempt int
	RetryIn time.Duration
	Stale   []string
}

// LiveOptions says what to follow, and whom to call. Callbacks are called one at a time; they may
// call the methods of the LiveBoard.
type LiveOptions struct {
	Board  string   // default: that of the deployment
	Window Window   // default: the first 10 rows
	Watch  []string // up to 5 users whose places are delivered; nil: the token's user

	OnBoard   func(Board)
	OnPlace   func(Place)
	OnStatus  func(Status)
	OnViewers func(board string, viewers *int64) // nil: it is not known
	OnRefused func(Refused)

	Patience Patience
}

// LiveBoard follows a board, and up to 8 others.
type LiveBoard struct {
	client   *Client
	options  LiveOptions
	patience Patience

	calling sync.Mutex // one callback at a time
	status  Status

	mutex      sync.Mutex // what the caller's goroutines change, and who writes
	watched    []string
	window     Window
	subscribed map[string]Window
	main       string
	conn       *websocket.Conn
	stale      []string // boards that may be outdated, as this connection was told
	left       []string // boards that were unsubscribed, and are still to be forgotten

	// Only Run and what it calls use these.
	token      string
	positions  map[string]position
	viewers    map[string]*int64
	failures   int
	rejections int
	syncedAt   time.Time
}

// position is which state of a board was delivered, and which window of it.
type position struct {
	epoch, seq   int64
	offset, rows int
}

// endsOfSubscriptions has the errors with a board after which the connection does not have it.
var endsOfSubscriptions = map[string]bool{
	"forbidden": true, "not-subscribed": true, "unauthenticated": true,
	"uninitialised": true, "unknown-board": true,
}

// connected is what is known of the present connection.
type connected struct {
	hasMessage bool
	bye        *bye
	answers    chan bool // whether the server has accepted a new token
	renewal    sync.WaitGroup
	isRenewing bool
	boards     map[string]Board // the last of each that it sent: what deltas are applied to
}

type action int

const (
	retry action = iota
	renew
	stop
)

// ending is how a connection ended, and what to do.
type ending struct {
	action  action
	reason  string
	code    int
	least   time.Duration    // wait at least so long
	delay   [2]time.Duration // wait between these, if the second is not 0
	problem *ProblemError
}

// closes has what the close codes ask for. All others are retried: later servers may have more.
var closes = map[int]ending{
	1001: {action: retry, reason: "restart", delay: [2]time.Duration{500 * time.Millisecond, 5 * time.Second}},
	1002: {action: stop, reason: "protocol-error"},
	1003: {action: stop, reason: "protocol-error"},
	1007: {action: stop, reason: "protocol-error"},
	1009: {action: stop, reason: "protocol-error"},
	1012: {action: retry, reason: "restart"},
	1013: {action: retry, reason: "full", least: 5 * time.Second},
	4400: {action: stop, reason: "malformed"},
	4401: {action: renew, reason: "token"},
	4403: {action: stop, reason: "forbidden"},
	4404: {action: stop, reason: "no-such-board"},
	4429: {action: retry, reason: "too-chatty", least: 30 * time.Second},
}

// Live returns a live board; its Run connects.
func (c *Client) Live(options LiveOptions) *LiveBoard {
	return &LiveBoard{
		client:     c,
		options:    options,
		patience:   options.Patience.withDefaults(),
		watched:    options.Watch,
		window:     either(options.Window, defaultWindow),
		subscribed: map[string]Window{},
		main:       options.Board,
		positions:  map[string]position{},
		viewers:    map[string]*int64{},
	}
}

// Watch delivers the places of these users (up to 5) instead of those before.
func (l *LiveBoard) Watch(userIDs ...string) {
	l.mutex.Lock()
	l.watched = append([]string{}, userIDs...)
	l.mutex.Unlock()
	l.write(watchMessage(userIDs))
}

// Subscribe follows another board too (up to 8), or another window of a board.
func (l *LiveBoard) Subscribe(board string, window Window) {
	window = Window{either(window.Rows, defaultWindow.Rows), window.Offset}
	l.mutex.Lock()
	if board == l.main {
		l.window = window
	} else {
		l.subscribed[board] = window
	}
	l.mutex.Unlock()
	l.write(subscribeMessage(board, window))
}

// Unsubscribe stops following another board. If it was stale, the next message shows the state
// without it.
func (l *LiveBoard) Unsubscribe(board string) {
	l.mutex.Lock()
	delete(l.subscribed, board)
	l.left = append(l.left, board)
	l.setStale(board, false)
	l.mutex.Unlock()
	l.write(map[string]any{"type": "unsubscribe", "board": board})
}

// Run connects, and delivers until the context ends, or until going on is useless. It returns the
// error of the context, or a *StoppedError. Call it once.
func (l *LiveBoard) Run(ctx context.Context) error {
	l.show(Status{State: Connecting})
	for why := TokenReason(""); ; {
		now := &connected{answers: make(chan bool, 1), boards: map[string]Board{}}
		started := time.Now()
		end := l.connect(ctx, now, why)
		why = ""
		if ctx.Err() != nil {
			l.show(Status{State: Stopped, Reason: "closed"})
			return ctx.Err()
		}
		if now.hasMessage && time.Since(started) >= l.patience.Settled {
			l.failures, l.rejections = 0, 0
		}
		if end.action == renew {
			l.rejections++
			if l.rejections == 1 && l.client.tokens.provider != nil {
				why = TokenRejected
				l.show(Status{State: Reconnecting, Reason: end.reason, Code: end.code})
				continue
			}
			end.action, end.reason = stop, "signed-out"
		}
		if end.action == stop {
			l.show(Status{State: Stopped, Reason: end.reason, Code: end.code})
			return &StoppedError{end.reason, end.code, end.problem}
		}
		wait := l.wait(end)
		l.failures++
		l.show(Status{
			State: Reconnecting, Reason: end.reason, Code: end.code, Attempt: l.failures, RetryIn: wait,
		})
		_ = sleep(ctx, wait) // connect sees the end of the context
	}
}

func (l *LiveBoard) wait(end ending) time.Duration {
	if low, high := end.delay[0], end.delay[1]; high > 0 {
		return min(longestWait, low+jitter(high-low))
	}
	limit := ceiling(l.patience.FirstWait, l.patience.Ceiling, l.failures)
	return min(longestWait, end.least) + jitter(max(limit, end.least))
}

// connect connects and delivers until the connection ends.
func (l *LiveBoard) connect(ctx context.Context, now *connected, why TokenReason) ending {
	ctx, cancel := context.WithCancel(ctx)
	token, err := l.client.tokens.get(ctx, why, l.token)
	if err != nil {
		cancel()
		l.refused(Refused{Code: "token-provider", Detail: err.Error()})
		return ending{reason: "token-provider"}
	}
	l.token = token
	conn, failure := l.dial(ctx)
	if failure != nil {
		cancel()
		return *failure
	}
	defer func() {
		l.setConn(nil)
		cancel()
		now.renewal.Wait()
		conn.CloseNow()
	}()
	for _, wish := range l.wishes(conn) {
		l.write(wish)
	}
	silence := l.patience.FirstMessage
	for {
		reading, done := context.WithTimeout(ctx, silence)
		_, text, err := conn.Read(reading)
		isSilent := errors.Is(reading.Err(), context.DeadlineExceeded)
		done()
		if err != nil {
			if isSilent {
				return ending{reason: "silent"}
			}
			return closed(err, now.bye)
		}
		silence = l.patience.Silence
		l.onText(ctx, now, text)
	}
}

// dial opens a connection, or says how that failed.
func (l *LiveBoard) dial(ctx context.Context) (*websocket.Conn, *ending) {
	address, err := l.address()
	if err != nil {
		return nil, &ending{action: stop, reason: err.Error()}
	}
	header := http.Header{}
	if l.token != "" {
		header.Set("Authorization", "Bearer "+l.token)
	}
	ctx, cancel := context.WithTimeout(ctx, l.client.timeout)
	defer cancel()
	conn, response, err := websocket.Dial(ctx, address, &websocket.DialOptions{
		HTTPClient:   l.client.http,
		HTTPHeader:   header,
		Subprotocols: subprotocols,
	})
	if err == nil {
		conn.SetReadLimit(frameBytes)
		return conn, nil
	}
	if response == nil || response.StatusCode == http.StatusSwitchingProtocols {
		return nil, &ending{reason: "lost"}
	}
	var body []byte
	if response.Body != nil {
		body, _ = io.ReadAll(response.Body)
	}
	return nil, refusal(problemOf(response.StatusCode, response.Header, body))
}

func (l *LiveBoard) address() (string, error) {
	parsed, err := url.Parse(l.client.liveURL)
	if err != nil {
		return "", err
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	values := parsed.Query()
	if l.options.Board != "" {
		values.Set("board", l.options.Board)
	}
	if l.window != defaultWindow { // servers before windows refuse the parameters
		values.Set("rows", strconv.Itoa(either(l.window.Rows, defaultWindow.Rows)))
		values.Set("offset", strconv.Itoa(l.window.Offset))
	}
	parsed.RawQuery = values.Encode()
	return parsed.String(), nil
}

// wishes begins to write to a connection, and returns what it has to be told.
func (l *LiveBoard) wishes(conn *websocket.Conn) []any {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.conn = conn
	l.stale = nil
	var wishes []any
	if l.watched != nil {
		wishes = append(wishes, watchMessage(l.watched))
	}
	for board, window := range l.subscribed {
		wishes = append(wishes, subscribeMessage(board, window))
	}
	return wishes
}

func (l *LiveBoard) setConn(conn *websocket.Conn) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.conn = conn
}

// write sends a message if there is a connection; a lost one shows in the next read.
func (l *LiveBoard) write(message any) {
	text, err := json.Marshal(message)
	l.mutex.Lock()
	conn := l.conn
	l.mutex.Unlock()
	if err != nil || conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.client.timeout)
	defer cancel()
	_ = conn.Write(ctx, websocket.MessageText, text)
}

// onText handles what the server sends.
func (l *LiveBoard) onText(ctx context.Context, now *connected, text []byte) {
	l.forgetLeft(now)
	message, err := parse(text)
	if err != nil {
		l.refused(Refused{Code: "bad-frame", Detail: err.Error()})
		return
	}
	switch message := message.(type) {
	case Board:
		l.onBoard(now, message)
	case delta:
		l.onDelta(now, message)
	case Place:
		l.call(func() { l.options.OnPlace(message) }, l.options.OnPlace != nil)
	case heartbeat:
		l.onHeartbeat(now, message)
	case sourceStatus:
		board := l.nameOf(message.Board)
		l.mutex.Lock()
		l.setStale(board, message.State == "stale" && l.isFollowed(board))
		l.mutex.Unlock()
		l.showLive(now)
	case authExpiring:
		if l.client.tokens.provider != nil && !now.isRenewing {
			now.isRenewing = true
			now.renewal.Add(1)
			go func() {
				defer now.renewal.Done()
				l.renew(ctx, now.answers)
			}()
		}
	case Refused:
		l.refused(message)
		if message.Board != "" && message.Board != l.nameOf("") && endsOfSubscriptions[message.Code] {
			l.mutex.Lock()
			l.setStale(message.Board, false)
			l.mutex.Unlock()
			l.forget(now, message.Board)
			l.showLive(now)
		}
		now.answer(false)
	case bye:
		now.bye = &message
	}
}

// forgetLeft forgets the boards that were unsubscribed.
func (l *LiveBoard) forgetLeft(now *connected) {
	l.mutex.Lock()
	left := l.left
	l.left = nil
	l.mutex.Unlock()
	for _, board := range left {
		l.forget(now, board)
	}
}

// forget forgets what was seen of a board.
func (l *LiveBoard) forget(now *connected, board string) {
	delete(l.positions, board)
	delete(l.viewers, board)
	delete(now.boards, board)
}

func (l *LiveBoard) onBoard(now *connected, board Board) {
	if !l.isWanted(board.Board) {
		return // it was on its way when the caller unsubscribed
	}
	l.showLive(now)
	l.count(board.Board, board.Viewers)
	l.take(now, board)
}

func (l *LiveBoard) onDelta(now *connected, change delta) {
	if !l.isWanted(change.Board) {
		return
	}
	l.showLive(now)
	base, isHeld := now.boards[change.Board]
	if !isHeld {
		return // a board comes first
	}
	if board, isBase := change.appliedTo(base); isBase {
		board.Viewers = l.viewers[change.Board]
		l.take(now, board)
	} else {
		l.syncBehind(change.Board, change.Epoch, change.Seq)
	}
}

// take delivers a board, unless it is older than the one that was delivered.
func (l *LiveBoard) take(now *connected, board Board) {
	now.boards[board.Board] = board
	seen := position{board.Epoch, board.Seq, board.Offset, board.Rows}
	held, isHeld := l.positions[board.Board]
	// Another window can be an older board.
	isSameWindow := held.offset == seen.offset && held.rows == seen.rows
	if isHeld && isSameWindow && held.epoch == seen.epoch && seen.seq < held.seq {
		return
	}
	l.positions[board.Board] = seen
	l.call(func() { l.options.OnBoard(copied(board)) }, l.options.OnBoard != nil)
}

func (l *LiveBoard) onHeartbeat(now *connected, beat heartbeat) {
	l.showLive(now)
	board := l.nameOf(beat.Board)
	if beat.Exp != nil {
		now.answer(true) // this one says nothing of viewers
	} else {
		l.count(board, beat.Viewers)
	}
	if beat.Epoch != nil {
		l.syncBehind(board, *beat.Epoch, beat.Seq)
	}
}

func (l *LiveBoard) count(board string, viewers *int64) {
	known := l.viewers[board]
	if known == viewers || (known != nil && viewers != nil && *known == *viewers) {
		return
	}
	l.viewers[board] = viewers
	l.call(func() { l.options.OnViewers(board, copiedNumber(viewers)) }, l.options.OnViewers != nil)
}

// syncBehind asks for a board if the server has a newer one, and was not asked just now.
func (l *LiveBoard) syncBehind(board string, epoch, seq int64) {
	held, isHeld := l.positions[board]
	isNewer := !isHeld || held.epoch != epoch || seq > held.seq
	if !isNewer || !l.isWanted(board) || time.Since(l.syncedAt) < l.patience.Sync {
		return
	}
	l.syncedAt = time.Now()
	message := map[string]any{"type": "sync"}
	if board != l.nameOf("") {
		message["board"] = board
	}
	l.write(message)
}

// isWanted also learns the name of the default board.
func (l *LiveBoard) isWanted(board string) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if _, isSubscribed := l.subscribed[board]; !isSubscribed {
		l.main = either(l.main, board)
	}
	return l.isFollowed(board)
}

// isFollowed needs the mutex.
func (l *LiveBoard) isFollowed(board string) bool {
	_, isSubscribed := l.subscribed[board]
	return isSubscribed || board == l.main || l.main == ""
}

// setStale needs the mutex.
func (l *LiveBoard) setStale(board string, isStale bool) {
	l.stale = slices.DeleteFunc(l.stale, func(one string) bool { return one == board })
	if isStale {
		l.stale = append(l.stale, board)
		slices.Sort(l.stale)
	}
}

func (l *LiveBoard) nameOf(board string) string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return either(board, l.main)
}

// renew sends a new token on the connection; it asks again later if there is none.
func (l *LiveBoard) renew(ctx context.Context, answers <-chan bool) {
	for range renewals {
		token, err := l.client.tokens.get(ctx, TokenExpiring, l.token)
		if err != nil && ctx.Err() == nil {
			l.refused(Refused{Code: "token-provider", Detail: err.Error()})
		}
		if err == nil && token != "" && token != l.token {
			l.token = token
			select {
			case <-answers: // to an earlier message
			default:
			}
			l.write(map[string]any{"type": "auth", "token": token})
			select {
			case isAccepted := <-answers:
				if isAccepted {
					return
				}
			case <-ctx.Done():
				return
			}
		}
		if sleep(ctx, l.patience.Renewal) != nil {
			return
		}
	}
}

// answer tells a renewal what the server said of its token.
func (now *connected) answer(isAccepted bool) {
	if !now.isRenewing {
		return
	}
	select {
	case now.answers <- isAccepted:
	default:
	}
	now.isRenewing = now.isRenewing && !isAccepted
}

func (l *LiveBoard) showLive(now *connected) {
	now.hasMessage = true
	l.mutex.Lock()
	stale := slices.Clone(l.stale)
	l.mutex.Unlock()
	status := Status{State: Live}
	if len(stale) > 0 {
		status = Status{State: Stale, Stale: stale}
	}
	l.show(status)
}

func (l *LiveBoard) show(status Status) {
	if !reflect.DeepEqual(status, l.status) {
		l.status = status
		l.call(func() { l.options.OnStatus(status) }, l.options.OnStatus != nil)
	}
}

func (l *LiveBoard) refused(what Refused) {
	l.call(func() { l.options.OnRefused(what) }, l.options.OnRefused != nil)
}

// call calls a callback, if there is one.
func (l *LiveBoard) call(callback func(), exists bool) {
	if exists {
		l.calling.Lock()
		defer l.calling.Unlock()
		callback()
	}
}

// closed says what to do after a connection has ended.
func closed(err error, bye *bye) ending {
	code := int(websocket.CloseStatus(err))
	if code < 0 {
		code = noCloseFrame
	}
	end, isKnown := closes[code]
	if !isKnown {
		end = ending{reason: "lost"}
	}
	end.code = code
	if bye == nil || end.action != retry {
		return end
	}
	if bye.Reconnect != nil && !*bye.Reconnect {
		return ending{action: stop, reason: "goodbye", code: code}
	}
	if ms := bye.DelayMS; len(ms) == 2 && 0 <= ms[0] && ms[0] <= ms[1] {
		end.delay = [2]time.Duration{milliseconds(ms[0]), milliseconds(ms[1])}
	}
	return end
}

// refusal says what to do after a refused handshake.
func refusal(problem *ProblemError) *ending {
	end := &ending{action: stop, reason: "refused", problem: problem, least: problem.RetryAfter}
	switch {
	case problem.Status == http.StatusUnauthorized:
		end.action, end.reason = renew, "token"
	case problem.IsTemporary:
		end.action = retry
	case problem.Status == http.StatusForbidden:
		end.reason = "forbidden"
	case problem.Status == http.StatusNotFound:
		end.reason = "no-such-board"
	}
	return end
}

func milliseconds(ms float64) time.Duration {
	return time.Duration(min(ms, float64(longestWait.Milliseconds())) * float64(time.Millisecond))
}

func watchMessage(userIDs []string) any {
	return map[string]any{"type": "watch", "userIds": append([]string{}, userIDs...)}
}

func subscribeMessage(board string, window Window) any {
	return map[string]any{
		"type": "subscribe", "board": board, "rows": window.Rows, "offset": window.Offset,
	}
}
