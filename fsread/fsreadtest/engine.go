package fsreadtest

import (
	"os"
	"testing"

	"github.com/btrexport/btrexport/devio"
)

// Engine is how tests read devices: what BTREXPORT_IO_ENGINE says, else as programs do by default.
func Engine(t testing.TB) devio.Engine {
	t.Helper()
	e, err := devio.ParseEngine(os.Getenv("BTREXPORT_IO_ENGINE"))
	if err != nil {
		t.Fatalf("BTREXPORT_IO_ENGINE: %v", err)
	}
	return e
}
