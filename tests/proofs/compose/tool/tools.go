//go:build tools

// Package tool names the two plugins of Docker's client that Debian does not have.
package tool

import (
	_ "github.com/docker/buildx/cmd/buildx"
	_ "github.com/docker/compose/v2/cmd"
)
