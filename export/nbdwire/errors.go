package nbdwire

import "errors"

// Kinds of malformed input. Decoders wrap them with the numbers that were seen.
var (
	ErrShort  = errors.New("too few bytes")
	ErrMagic  = errors.New("bad magic")
	ErrLength = errors.New("lengths do not add up")
	ErrName   = errors.New("malformed string")
	ErrFlags  = errors.New("unknown flags")
)
