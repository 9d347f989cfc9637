//go:build tools

// Package tools keeps the modules of programs that are built, and not imported, in go.mod.
package tools

import (
	_ "istio.io/istio/pkg/test/echo/cmd/client"
	_ "istio.io/istio/pkg/test/echo/cmd/server"
)
