//go:build tools

// Package tools names the program that go.mod and go.sum pin.
package tools

import _ "go.etcd.io/etcd/server/v3"
