package export

import (
	"fmt"
	"log/slog"
	"math"
	"strings"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
	"github.com/btrexport/btrexport/internal/spelling"
)

// Export is one file under one name. All its connections share File, so that they see one
// content (CAN_MULTI_CONN).
type Export struct {
	Name        string      // UTF-8, no NUL, at most 4096 bytes
	Description string      // likewise; may be empty
	File        File        // needed
	RoundUp     uint32      // pads the size with zeroes to a multiple of so many bytes, at most MaxRead; 0 and 1: exact
	Stats       ExportStats // nil means none
	TLS         TLSMode     // "" is the server's; off is the same as allow
	Allow       Access      // who may use it; others are not told that it is there
}

// transmissionFlags say: read-only, flush does nothing and succeeds, one content for all, cache reads ahead.
const transmissionFlags = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS | nbdwire.FlagReadOnly |
	nbdwire.FlagSendFlush | protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN | nbdwire.FlagSendCache

// served is an Export with what is computed once. Immutable but for the log's rate.
type served struct {
	Export
	fileSize uint64 // of File
	size     uint64 // what clients see: fileSize rounded up
	flags    uint16 // transmission flags, whatever a client negotiates
	secret   bool   // only for who has turned TLS on
	log      *limitedLog
}

// newServed checks e. A size above 2^63-1 is refused, before or after rounding: clients keep
// sizes in signed numbers (CVE-2023-5215).
func newServed(e Export, log *slog.Logger) (*served, error) {
	if err := nbdwire.CheckString(e.Name); err != nil {
		return nil, fmt.Errorf("export %q: name: %w", nbdwire.Shorten(e.Name, maxShownName), err)
	}
	if err := nbdwire.CheckString(e.Description); err != nil {
		return nil, fmt.Errorf("export %q: description: %w", e.Name, err)
	}
	if e.File == nil {
		return nil, fmt.Errorf("export %q: no file", e.Name)
	}
	if e.RoundUp > MaxRead {
		return nil, fmt.Errorf("export %q: round_up of %d bytes (at most %d)", e.Name, e.RoundUp, MaxRead)
	}
	fileSize := e.File.Size()
	size, ok := roundUp(fileSize, uint64(e.RoundUp))
	if !ok {
		return nil, fmt.Errorf("export %q: size of %d bytes is above 2^63-1", e.Name, fileSize)
	}
	flags := transmissionFlags
	if r, ok := e.File.(Rotator); ok && r.Rotational() {
		flags |= nbdwire.FlagRotational
	}
	return &served{Export: e, fileSize: fileSize, size: size, flags: flags, log: newLimitedLog(log.With("export", e.Name))}, nil
}

// sectorsEnd is where the last sector of 512 bytes ends that the file has bytes of, as far as clients see.
func (s *served) sectorsEnd() uint64 {
	end, _ := roundUp(s.fileSize, sectorBytes)
	return min(end, s.size)
}

// roundUp returns the smallest multiple of to (0 and 1: any) that is at least size; false if
// that is above 2^63-1.
func roundUp(size, to uint64) (uint64, bool) {
	if size > math.MaxInt64 {
		return 0, false
	}
	if to > 1 {
		// to <= MaxRead, so this cannot overflow 64 bits.
		size = (size + to - 1) / to * to
	}
	return size, size <= math.MaxInt64
}

// exportSet finds exports by name. Immutable.
type exportSet struct {
	list   []*served // in the order given
	byName map[string]*served
}

func newExportSet(exports []Export, log *slog.Logger) (exportSet, error) {
	if len(exports) == 0 {
		return exportSet{}, fmt.Errorf("nothing to export")
	}
	set := exportSet{byName: make(map[string]*served, len(exports))}
	for _, e := range exports {
		s, err := newServed(e, log)
		if err != nil {
			return exportSet{}, err
		}
		if set.byName[e.Name] != nil {
			return exportSet{}, fmt.Errorf("export %q is defined twice", e.Name)
		}
		set.byName[e.Name] = s
		set.list = append(set.list, s)
	}
	return set, nil
}

// find returns the export called name, nil if there is none. The empty name is the default
// export: the only one, when there is one.
func (set exportSet) find(name string) *served {
	if e := set.byName[name]; e != nil {
		return e
	}
	if name == "" && len(set.list) == 1 {
		return set.list[0]
	}
	return nil
}

// Bounds in bytes of what an error text repeats.
const (
	maxShownName  = 64
	maxShownNames = 1024
)

// unknownText is the error for a name that there is not. It lists the names to choose from, as
// far as they fit.
func unknownText(name string, visible []*served) string {
	var b strings.Builder
	if name == "" {
		b.WriteString("there is no default export")
	} else {
		fmt.Fprintf(&b, "no export %q", nbdwire.Shorten(name, maxShownName))
		if near := nearest(name, visible); near != "" {
			fmt.Fprintf(&b, " (did you mean %q?)", near)
		}
	}
	for i, e := range visible {
		switch {
		case i > 0:
			b.WriteString(", ")
		case name == "":
			b.WriteString("; name one of: ")
		default:
			b.WriteString("; there are: ")
		}
		if b.Len() > maxShownNames {
			b.WriteString("...")
			break
		}
		fmt.Fprintf(&b, "%q", nbdwire.Shorten(e.Name, maxShownName))
	}
	return b.String()
}

// nearest gives the name of the visible export that a name is likely a slip of; empty where there is none. Long names
// are not compared: a client chooses them.
func nearest(name string, visible []*served) string {
	if len(name) > maxShownName {
		return ""
	}
	search := spelling.For(name)
	for _, e := range visible {
		if len(e.Name) <= maxShownName {
			search.Add(e.Name)
		}
	}
	best, _ := search.Best()
	return best
}
