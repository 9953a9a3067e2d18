package scoreboard

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// TokenReason says why a provider is asked for a token.
type TokenReason string

// Why a provider is asked.
const (
	TokenFirst    TokenReason = "first"    // there is none yet
	TokenExpired  TokenReason = "expired"  // by its exp, before a request
	TokenExpiring TokenReason = "expiring" // the server says so, on a live connection
	TokenRejected TokenReason = "rejected" // the service refused it
)

// TokenProvider returns a current token, or "" for none.
type TokenProvider func(context.Context, TokenReason) (string, error)

// expiryMargin: a token that is this close to its expiry is not sent with a new request.
const expiryMargin = 5 * time.Second

// tokens holds the token of a client; one caller at a time asks the provider.
type tokens struct {
	provider TokenProvider
	turn     chan struct{}
	current  string
}

func newTokens(token string, provider TokenProvider) *tokens {
	return &tokens{provider: provider, current: token, turn: make(chan struct{}, 1)}
}

// get returns the token to use. why is what happened to the token used; "" is nothing. If another
// caller has replaced that one since, nothing happened to the current token.
func (t *tokens) get(ctx context.Context, why TokenReason, used string) (string, error) {
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	defer func() { <-t.turn }()
	reason := t.reason(why, used)
	if reason == "" {
		return t.current, nil
	}
	token, err := t.provider(ctx, reason)
	if err == nil {
		t.current = token
	}
	return token, err
}

func (t *tokens) reason(why TokenReason, used string) TokenReason {
	switch {
	case t.provider == nil:
		return ""
	case t.current == "" && (why == "" || used == ""):
		return TokenFirst
	case why != "" && (used == t.current || t.current == ""):
		return why
	case expiresBefore(t.current, time.Now().Add(expiryMargin)):
		return TokenExpired
	}
	return ""
}

// expiresBefore reads the expiry of a JWT; a token that has none never expires.
func expiresBefore(token string, moment time.Time) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	text, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	var claims struct{ Exp *float64 }
	if err != nil || json.Unmarshal(text, &claims) != nil || claims.Exp == nil {
		return false
	}
	return *claims.Exp < float64(moment.UnixMilli())/1000
}
