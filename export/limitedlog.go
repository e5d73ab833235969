package export

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// limitedLog passes one line a second, so that a dying disk or a client in a loop cannot fill
// the journal. The next line that passes counts those that did not in suppressed.
type limitedLog struct {
	log *slog.Logger // immutable

	mu         sync.Mutex
	next       time.Time // guarded by mu
	suppressed int       // guarded by mu
}

func newLimitedLog(log *slog.Logger) *limitedLog { return &limitedLog{log: log} }

func (l *limitedLog) print(level slog.Level, msg string, attrs ...slog.Attr) {
	now := time.Now()
	l.mu.Lock()
	if now.Before(l.next) {
		l.suppressed++
		l.mu.Unlock()
		return
	}
	suppressed := l.suppressed
	l.suppressed, l.next = 0, now.Add(time.Second)
	l.mu.Unlock()
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	l.log.LogAttrs(context.Background(), level, msg, attrs...)
}
