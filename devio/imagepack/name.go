package imagepack

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxName is the longest name that Linux filesystems take, in bytes.
const maxName = 255

// baseName returns the name of a file that lies directly in the archive, as "disk.img" and
// "./disk.img" do. It refuses what leads elsewhere, what a shell or terminal may trip over, and
// hidden files, rather than bend them into something that may collide.
func baseName(name string) (string, error) {
	base := strings.TrimPrefix(name, "./")
	switch {
	case base == "" || len(base) > maxName || !utf8.ValidString(base):
		return "", fmt.Errorf("%w: %d bytes", ErrName, len(base))
	case strings.ContainsAny(base, `/\`):
		return "", fmt.Errorf("%w: it has a directory", ErrName)
	case base[0] == '.' || base[0] == '-':
		return "", fmt.Errorf("%w: it starts with %q", ErrName, base[0])
	case strings.ContainsFunc(base, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "", fmt.Errorf("%w: it has characters that cannot be printed", ErrName)
	}
	return base, nil
}
