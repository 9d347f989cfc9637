//go:build tools

// Package tools keeps the module of a program that is built, and not imported, in go.mod.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
