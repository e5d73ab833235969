package configs

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want int64
		err  string
	}{
		{in: "0", want: 0},
		{in: "512", want: 512},
		{in: "512B", want: 512},
		{in: "1KiB", want: 1024},
		{in: "64MiB", want: 64 << 20},
		{in: "64 MiB", want: 64 << 20},
		{in: "3GiB", want: 3 << 30},
		{in: "2TiB", want: 2 << 40},
		{in: "1kB", want: 1000},
		{in: "64MB", want: 64e6},
		{in: "3GB", want: 3e9},
		{in: "2TB", want: 2e12},
		{in: "9223372036854775807", want: math.MaxInt64},
		{in: "8388607TiB", want: 8388607 << 40},
		{in: "8388608TiB", err: `"8388608TiB" is more than a disk can hold (write a smaller size)`},
		{in: "9223372036854775808", err: `"9223372036854775808" is more than a disk can hold (write a smaller size)`},
		{in: "99999999999999999999", err: `"99999999999999999999" is too large (write a smaller number)`},
		{in: "64M", err: `"64M" is ambiguous (write 64MiB or 64MB)`},
		{in: "64m", err: `"64m" is ambiguous (write 64MiB or 64MB)`},
		{in: "64k", err: `"64k" is ambiguous (write 64KiB or 64kB)`},
		{in: "64K", err: `"64K" is ambiguous (write 64KiB or 64kB)`},
		{in: "1G", err: `"1G" is ambiguous (write 1GiB or 1GB)`},
		{in: "1T", err: `"1T" is ambiguous (write 1TiB or 1TB)`},
		{in: "010", err: `"010" has a leading zero (write 10, or 8 if you mean octal)`},
		{in: "010MiB", err: `"010" has a leading zero (write 10, or 8 if you mean octal)`},
		{in: "", err: noSize("")},
		{in: "MiB", err: noSize("MiB")},
		{in: "-1", err: noSize("-1")},
		{in: "1.5GiB", err: noSize("1.5GiB")},
		{in: "64KB", err: noSize("64KB")},
		{in: "64mib", err: noSize("64mib")},
		{in: "64  MiB", err: noSize("64  MiB")},
		{in: "64MiB ", err: noSize("64MiB ")},
		{in: "1e3", err: noSize("1e3")},
		{in: "0x10", err: noSize("0x10")},
		{in: "64PiB", err: noSize("64PiB")},
		{in: "٣", err: noSize("٣")},
	} {
		got, err := ParseSize(tc.in)
		if got != tc.want || errText(err) != tc.err {
			t.Errorf("ParseSize(%q) = %d, %v, want %d, %s", tc.in, got, err, tc.want, tc.err)
		}
	}
}

func noSize(s string) string {
	return fmt.Sprintf("%q is no size (write a whole number and one of KiB MiB GiB TiB kB MB GB TB, for example 64MiB)", s)
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestSizesReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<20).Draw(t, "n") << rapid.IntRange(0, 42).Draw(t, "shift")
		if got, err := ParseSize(formatSize(n)); got != n || err != nil {
			t.Fatalf("%d is written %s and read %d, %v", n, formatSize(n), got, err)
		}
	})
}

func TestParseDuration(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want time.Duration
		err  string
	}{
		{in: "10s", want: 10 * time.Second},
		{in: "0s", want: 0},
		{in: "0.5s", want: 500 * time.Millisecond},
		{in: "1m30s", want: 90 * time.Second},
		{in: "500ms", want: 500 * time.Millisecond},
		{in: "10", err: `"10" has no unit (write 10s or 10ms)`},
		{in: "010s", err: `"010s" has a leading zero (write 10s, or 8s if you mean octal)`},
		{in: "00s", err: `"00s" has a leading zero (write 0s)`},
		{in: "", err: errText(errNoDuration(""))},
		{in: "-1s", err: errText(errNoDuration("-1s"))},
		{in: "+1s", err: errText(errNoDuration("+1s"))},
		{in: "1d", err: errText(errNoDuration("1d"))},
		{in: "10 s", err: errText(errNoDuration("10 s"))},
		{in: "99999999999h", err: errText(errNoDuration("99999999999h"))},
	} {
		got, err := parseDuration(tc.in)
		if got != tc.want || errText(err) != tc.err {
			t.Errorf("parseDuration(%q) = %v, %v, want %v, %s", tc.in, got, err, tc.want, tc.err)
		}
	}
}

func TestQuoteCutsAtARune(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb": `"a\nb"`,
		"ü" + "123456789012345678901234567890123456789012345678901234567ü!": `"ü123456789012345678901234567890123456789012345678901234567"…`,
	} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %s, want %s", in, got, want)
		}
	}
}
