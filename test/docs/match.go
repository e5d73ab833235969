package docs

import (
	"fmt"
	"regexp"
	"strings"
)

// match holds what a command printed against the lines below it. An … stands for any text within a line, and alone on a
// line for any lines, none included.
func match(want []string, got string) error {
	re, err := pattern(want)
	if err != nil {
		return err
	}
	got = strings.ReplaceAll(got, "\r\n", "\n") // as serial consoles end a line
	if got != "" && !strings.HasSuffix(got, "\n") {
		got += "\n"
	}
	if !re.MatchString(got) {
		return fmt.Errorf("it printed\n%sand the page says\n%s", indent(got), indent(strings.Join(want, "\n")+"\n"))
	}
	return nil
}

// blanks between columns are as many as the longest entry wants, and a disk's stand-in has a longer name.
var blanks = regexp.MustCompile(` +`)

func pattern(want []string) (*regexp.Regexp, error) {
	var s strings.Builder
	s.WriteString(`\A`)
	for _, line := range want {
		if strings.TrimSpace(line) == "…" {
			s.WriteString(`(?:.*\n)*`)
			continue
		}
		line = blanks.ReplaceAllString(strings.ReplaceAll(regexp.QuoteMeta(line), "…", `.*`), ` +`)
		s.WriteString(line + `[ \t]*\n`)
	}
	s.WriteString(`\z`)
	return regexp.Compile(s.String())
}

func indent(text string) string {
	var s strings.Builder
	for line := range strings.Lines(text) {
		s.WriteString("    " + line)
	}
	return s.String()
}
