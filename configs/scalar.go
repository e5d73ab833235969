package configs

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// ParseSize reads a number of bytes: digits, and KiB MiB GiB TiB (powers of 1024) or kB MB GB TB (powers of
// 1000) behind them. The letter alone is refused: programs do not agree about what 64M is.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "BKMGTikmgt ")
	unit := strings.TrimPrefix(s[len(digits):], " ")
	scale, ok := sizeUnit(unit)
	switch {
	case len(unit) == 1 && strings.ContainsAny(unit, "kKmMgGtT"):
		prefix := strings.ToUpper(unit)
		return 0, fmt.Errorf("%s is ambiguous (write %s%siB or %s%s)",
			quote(s), digits, prefix, digits, strings.Replace(prefix+"B", "KB", "kB", 1))
	case !isDigits(digits) || !ok:
		return 0, fmt.Errorf("%s is no size (write a whole number and one of KiB MiB GiB TiB kB MB GB TB, for example 64MiB)", quote(s))
	}
	n, err := parseWhole(digits)
	if err != nil {
		return 0, err
	}
	if n > math.MaxInt64/scale {
		return 0, fmt.Errorf("%s is more than a disk can hold (write a smaller size)", quote(s))
	}
	return int64(n * scale), nil
}

func sizeUnit(unit string) (scale uint64, ok bool) {
	switch unit {
	case "", "B":
		return 1, true
	case "KiB":
		return 1 << 10, true
	case "MiB":
		return 1 << 20, true
	case "GiB":
		return 1 << 30, true
	case "TiB":
		return 1 << 40, true
	case "kB":
		return 1e3, true
	case "MB":
		return 1e6, true
	case "GB":
		return 1e9, true
	case "TB":
		return 1e12, true
	default:
		return 0, false
	}
}

// formatSize writes n so that ParseSize reads the same number back.
func formatSize(n int64) string {
	for _, u := range []struct {
		name  string
		shift uint
	}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if n >= 1<<u.shift && n&(1<<u.shift-1) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// parseWhole reads decimal digits. A leading zero is refused: YAML 1.1 reads 010 as 8, people as 10.
func parseWhole(s string) (uint64, error) {
	if !isDigits(s) {
		return 0, fmt.Errorf("%s is no whole number (write digits only)", quote(s))
	}
	if err := noLeadingZero(s); err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil { // digits only: it is out of range
		return 0, fmt.Errorf("%s is too large (write a smaller number)", quote(s))
	}
	return n, nil
}

func noLeadingZero(s string) error {
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	if len(digits) < 2 || digits[0] != '0' {
		return nil
	}
	decimal := strings.TrimLeft(digits, "0")
	if decimal == "" {
		decimal = "0"
	}
	rest := s[len(digits):]
	if octal, err := strconv.ParseUint(digits, 8, 64); err == nil && strconv.FormatUint(octal, 10) != decimal {
		return fmt.Errorf("%s has a leading zero (write %s%s, or %d%s if you mean octal)", quote(s), decimal, rest, octal, rest)
	}
	return fmt.Errorf("%s has a leading zero (write %s%s)", quote(s), decimal, rest)
}

// parseDuration reads what time.ParseDuration does, without signs and leading zeroes.
func parseDuration(s string) (time.Duration, error) {
	if isDigits(s) {
		return 0, fmt.Errorf("%s has no unit (write %ss or %sms)", quote(s), s, s)
	}
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, errNoDuration(s)
	}
	if err := noLeadingZero(s); err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errNoDuration(s)
	}
	return d, nil
}

func errNoDuration(s string) error {
	return fmt.Errorf("%s is no duration (write for example 500ms, 10s or 1m30s)", quote(s))
}

// parseBool takes the two words that every YAML reader takes for a boolean.
func parseBool(s string) (bool, error) {
	switch s {
	case "true", "True", "TRUE":
		return true, nil
	case "false", "False", "FALSE":
		return false, nil
	}
	switch strings.ToLower(s) {
	case "yes", "on", "y":
		return false, fmt.Errorf("wants true or false, found %s (write true)", quote(s))
	case "no", "off", "n":
		return false, fmt.Errorf("wants true or false, found %s (write false)", quote(s))
	}
	return false, errors.New("wants true or false (write one of the two, without quotes)")
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
