// Sign proofs of actions in a game server.
//
//	go run sign_proof.go proof-key.pem KID alice raid:77 250
//
// KID is the kid of the key in the key set. Needs Go 1.22 and no modules.
package main

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"
)

// life is how long a player may take to send the proof; the service accepts at most 10 minutes.
const life = 5 * time.Minute

// sign signs that a user did an action, which is worth these points.
func sign(key *ecdsa.PrivateKey, kid, userID, actionID string, points int) (string, error) {
	head, err := encode(map[string]any{"alg": "ES256", "typ": "scoreboard-proof+jwt", "kid": kid})
	if err != nil {
		return "", err
	}
	body, err := encode(map[string]any{
		"sub": userID, "actionId": actionID, "points": points, "exp": time.Now().Add(life).Unix(),
	})
	if err != nil {
		return "", err
	}
	signed := head + "." + body
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64) // r and s, 32 bytes each (RFC 7518, section 3.4)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func encode(value any) (string, error) {
	text, err := json.Marshal(value)
	return base64.RawURLEncoding.EncodeToString(text), err
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the file contains no PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key is not an EC key")
	}
	return key, nil
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 6 {
		log.Fatal("usage: sign_proof KEY.pem KID USER ACTION POINTS")
	}
	key, err := readKey(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	points, err := strconv.Atoi(os.Args[5])
	if err != nil {
		log.Fatal(err)
	}
	proof, err := sign(key, os.Args[2], os.Args[3], os.Args[4], points)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(proof)
}
