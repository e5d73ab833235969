package devio

import "log/slog"

const (
	defaultWorkers = 8
	maxWorkers     = 1024 // each may hold an operating system thread; the Go runtime ends at 10000
)

// Options say how a device is opened. The zero value is a good choice.
type Options struct {
	Workers  int          // reads in flight on this device, up to 1024; 0 means 8. One read done by its submitter comes on top
	Buffered bool         // read through the page cache, not with O_DIRECT
	Log      *slog.Logger // nil: silent. One warning, naming the device, when O_DIRECT is refused
}

func (o Options) workers() (int, error) {
	switch {
	case o.Workers == 0:
		return defaultWorkers, nil
	case o.Workers < 0 || o.Workers > maxWorkers:
		return 0, ErrWorkers
	}
	return o.Workers, nil
}

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}
