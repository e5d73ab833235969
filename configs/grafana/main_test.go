package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestFilesAreGenerated: the files are what the program writes, and there are no others.
func TestFilesAreGenerated(t *testing.T) {
	for _, d := range dashboards() {
		want, err := d.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("dashboards", d.uid+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("dashboards/%s.json is not what the program writes (go generate ./configs/grafana)", d.uid)
		}
	}
	files, err := filepath.Glob("dashboards/*")
	if err != nil || len(files) != len(dashboards()) {
		t.Errorf("%v, %v: want %d files", files, err, len(dashboards()))
	}
}
