package export

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// TestErrno is item 61: every error of this package, and whatever a File or the kernel may come with, becomes one of the
// document's numbers, and each of these only where the document has it: EOVERFLOW for a read that is too long for its
// replies, never ENOMEM, ENOSPC or ENOTSUP.
func TestErrno(t *testing.T) {
	kinds := map[string]struct {
		err  error
		want uint32
	}{
		"errReadOnly":     {errReadOnly, eperm},
		"errFlags":        {errFlags, einval},
		"errLength":       {errLength, einval},
		"errTooLong":      {errTooLong, nbdwire.EOVERFLOW},
		"errRange":        {errRange, einval},
		"errCommand":      {errCommand, einval},
		"errFlushRange":   {errFlushRange, einval},
		"errNoContext":    {errNoContext, einval},
		"errNoPayload":    {errNoPayload, einval},
		"errFilter":       {errFilter, einval},
		"errShuttingDown": {errShuttingDown, nbdwire.ESHUTDOWN},
		"errShortPayload": {errShortPayload, nbdwire.EIO},
		"errParts":        {errParts, nbdwire.EIO},
		"errNoExtents":    {errNoExtents, nbdwire.EIO},
	}
	for _, name := range errorsOf(t, "errno.go", "reply.go", "status.go") {
		if _, ok := kinds[name]; !ok {
			t.Errorf("%s is not in the table", name)
		}
	}
	for name, k := range kinds {
		for _, err := range []error{k.err, fmt.Errorf("offset 5: %w", k.err), errors.Join(io.EOF, k.err)} {
			if got := errno(err); got != k.want {
				t.Errorf("%s: errno %d, want %d", name, got, k.want)
			}
		}
	}
	for _, err := range []error{io.EOF, io.ErrUnexpectedEOF, context.Canceled, context.DeadlineExceeded, os.ErrDeadlineExceeded, fs.ErrPermission,
		syscall.EPERM, syscall.EINVAL, syscall.ENOMEM, syscall.ENOSPC, syscall.EOVERFLOW, syscall.EOPNOTSUPP, syscall.ESHUTDOWN,
		syscall.ENODATA, syscall.EREMOTEIO, syscall.Errno(1 << 20), ErrWait, errLostPart, errors.New("")} {
		if got := errno(err); got != nbdwire.EIO {
			t.Errorf("%v of a File: errno %d, want EIO", err, got)
		}
	}
	if got := errno(nil); got != 0 {
		t.Errorf("no error: errno %d", got)
	}
}

// errorsOf lists the errors that are declared in files of this package.
func errorsOf(t *testing.T, files ...string) (names []string) {
	t.Helper()
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range g.Specs {
				if v, ok := s.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "err") {
					names = append(names, v.Names[0].Name)
				}
			}
		}
	}
	if len(names) < 12 {
		t.Errorf("errors found: %q", names)
	}
	return names
}
