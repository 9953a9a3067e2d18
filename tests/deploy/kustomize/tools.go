//go:build tools

// Package kustomize pins the program that renders deploy/k8s in the tests.
package kustomize

import _ "sigs.k8s.io/kustomize/kustomize/v5"
