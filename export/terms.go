package export

import (
	"errors"
	"fmt"
	"log/slog"
)

// terms are what a Server serves and how. Immutable: a reload replaces them as a whole, and a
// handshake keeps those under which it began.
type terms struct {
	exports exportSet
	limits  Limits
	tls     TLS
	policy  tlsPolicy // of clients that keep to the handshake's rules
}

// newTerms checks the options. The error names the export at fault.
func newTerms(o Options, log *slog.Logger) (*terms, error) {
	t := &terms{limits: o.Limits.withDefaults(), tls: o.TLS}
	if err := t.tls.check(); err != nil {
		return nil, err
	}
	var err error
	if t.exports, err = newExportSet(o.Exports, log); err != nil {
		return nil, err
	}
	if t.tls.Mode == TLSOff {
		for _, e := range t.exports.list {
			if e.TLS == TLSRequire {
				return nil, fmt.Errorf("export %q: requires TLS, which is off", e.Name)
			}
		}
		return t, nil
	}
	t.policy = forcedTLS
	for _, e := range t.exports.list {
		e.secret = e.TLS == TLSRequire || e.TLS == "" && t.tls.Mode == TLSRequire
		if !e.secret {
			t.policy = selectiveTLS
		}
	}
	return t, nil
}

// check fills in the default mode.
func (c *TLS) check() error {
	switch c.Mode {
	case "":
		c.Mode = TLSOff
	case TLSOff:
	case TLSAllow, TLSRequire:
		if c.Config == nil {
			return errors.New("TLS is on and has no certificate")
		}
	default:
		return fmt.Errorf("TLS mode %q is unknown", c.Mode)
	}
	return nil
}
