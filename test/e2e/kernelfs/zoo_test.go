//go:build linux

package kernelfs

import "testing"

// The value for "default" stands in the tree of roots of every filesystem.
func TestNameHash(t *testing.T) {
	if got, want := NameHash("default"), uint32(2378154706); got != want {
		t.Errorf("got %d, want %d", got, want)
	}
}

func TestCollidingNames(t *testing.T) {
	names := CollidingNames(3)
	if len(names) != 6 {
		t.Fatalf("got %d names, want 6", len(names))
	}
	for i := 0; i < len(names); i += 2 {
		if a, b := names[i], names[i+1]; a == b || NameHash(a) != NameHash(b) {
			t.Errorf("%q and %q: hashes %#x and %#x", a, b, NameHash(a), NameHash(b))
		}
	}
}
