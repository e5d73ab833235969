package docs

import (
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
)

var (
	linkTo    = regexp.MustCompile(`\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)`)
	linkLabel = regexp.MustCompile(`^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$`)
	codeSpan  = regexp.MustCompile("`[^`]*`")
	heading   = regexp.MustCompile(`^ {0,3}#{1,6}\s+(.*?)\s*#*$`)
	linkText  = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)
)

// Markdown lists the Markdown files of the project, relative to its root.
func Markdown(root string) ([]string, error) {
	var pages []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if !d.IsDir() && strings.HasSuffix(path, ".md") {
			rel, err := filepath.Rel(root, path)
			pages = append(pages, rel)
			return err
		}
		return nil
	})
	return pages, err
}

// Dead gives the relative links of a page that lead nowhere, and how many there are in all. A link leads to a file or
// directory of the project; behind a # stands the anchor of a heading.
func Dead(root, page string) (dead []string, links int, err error) {
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		return nil, 0, err
	}
	eachLine(string(text), func(n int, line string) {
		line = codeSpan.ReplaceAllString(line, "")
		found := linkTo.FindAllStringSubmatch(line, -1)
		if m := linkLabel.FindStringSubmatch(line); m != nil {
			found = append(found, m)
		}
		for _, m := range found {
			u, err := url.Parse(m[1])
			if err == nil && (u.IsAbs() || u.Host != "") {
				continue
			}
			links++
			if err == nil {
				err = follow(root, page, u)
			}
			if err != nil {
				dead = append(dead, fmt.Sprintf("%s:%d: %s: %v", page, n, m[1], err))
			}
		}
	})
	return dead, links, nil
}

func follow(root, page string, u *url.URL) error {
	to := filepath.Join(root, page)
	if u.Path != "" {
		to = filepath.Join(filepath.Dir(to), u.Path)
	}
	rel, err := filepath.Rel(root, to)
	if err != nil || !filepath.IsLocal(rel) {
		return fmt.Errorf("leads out of the project")
	}
	if _, err := os.Stat(to); err != nil {
		return fmt.Errorf("no such file")
	}
	if u.Fragment == "" {
		return nil
	}
	text, err := os.ReadFile(to)
	if err != nil {
		return err
	}
	if !anchors(string(text))[u.Fragment] {
		return fmt.Errorf("no heading has this anchor")
	}
	return nil
}

// anchors are those that GitHub gives to headings: small letters, digits, - and _ stay, a blank is a -, all else goes; the
// second of a name gets -1.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	seen := map[string]int{}
	eachLine(text, func(_ int, line string) {
		m := heading.FindStringSubmatch(line)
		if m == nil {
			return
		}
		slug := strings.Map(func(r rune) rune {
			switch {
			case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
				return unicode.ToLower(r)
			case r == ' ':
				return '-'
			}
			return -1
		}, linkText.ReplaceAllString(m[1], "$1"))
		name := slug
		if n := seen[slug]; n > 0 {
			name = fmt.Sprintf("%s-%d", slug, n)
		}
		seen[slug]++
		all[name] = true
	})
	return all
}

// eachLine calls f for the lines outside of fenced blocks.
func eachLine(text string, f func(n int, line string)) {
	open := ""
	for i, line := range strings.Split(text, "\n") {
		m := fenceLine.FindStringSubmatch(line)
		switch {
		case open == "" && m != nil:
			open = m[2]
		case open == "":
			f(i+1, line)
		case m != nil && strings.HasPrefix(m[2], open) && strings.TrimSpace(line) == m[2]:
			open = ""
		}
	}
}
