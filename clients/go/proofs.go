package scoreboard

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"time"
)

// ProofKey signs proofs of actions in a game server, with ES256. Whoever has it can award points
// to anybody.
type ProofKey struct {
	key *ecdsa.PrivateKey
	jwk map[string]string
}

// Proof is what a game server signs: that a user did an action that is worth these points.
type Proof struct {
	UserID, ActionID string
	Points           int64
	Boards           []string      // up to 8; none: where its kind counts
	Audience         string        // optional: that of the service
	Life             time.Duration // default: 5 minutes; the service accepts 10 by default
}

// NewProofKey reads a key on the curve P-256 from PEM (PKCS #8).
func NewProofKey(text []byte) (*ProofKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the text contains no PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the key is not an EC key on the curve P-256")
	}
	public, err := key.PublicKey.ECDH()
	if err != nil {
		return nil, err
	}
	point := public.Bytes() // 4, x, y
	jwk := map[string]string{
		"crv": "P-256", "kty": "EC", "x": base64URL(point[1:33]), "y": base64URL(point[33:]),
	}
	canonical, err := json.Marshal(jwk) // sorted by name, as RFC 7638 asks for
	if err != nil {
		return nil, err
	}
	thumbprint := sha256.Sum256(canonical)
	jwk["kid"], jwk["alg"], jwk["use"] = base64URL(thumbprint[:]), "ES256", "sig"
	return &ProofKey{key, jwk}, nil
}

// KeySet returns the key set with the public key, as JSON.
func (k *ProofKey) KeySet() ([]byte, error) {
	return json.Marshal(map[string]any{"keys": []any{k.jwk}})
}

// Sign returns a proof, which the player sends with the action.
func (k *ProofKey) Sign(proof Proof) (string, error) {
	claims := map[string]any{
		"sub": proof.UserID, "actionId": proof.ActionID, "points": proof.Points,
		"exp": time.Now().Add(either(proof.Life, 5*time.Minute)).Unix(),
	}
	if len(proof.Boards) > 0 {
		claims["boards"] = proof.Boards
	}
	if proof.Audience != "" {
		claims["aud"] = proof.Audience
	}
	head, err := json.Marshal(map[string]string{
		"alg": "ES256", "typ": "scoreboard-proof+jwt", "kid": k.jwk["kid"],
	})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed := base64URL(head) + "." + base64URL(body)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, k.key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64) // r and s, 32 bytes each (RFC 7518, section 3.4)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + base64URL(signature), nil
}

func base64URL(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }
