package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// kind is what a node of the text is, in the words of the error messages.
type kind string

const (
	mapping  kind = "keys with values"
	sequence kind = "a list"
	text     kind = "text"
	number   kind = "a number"
	boolean  kind = "true or false"
	null     kind = "nothing"
)

// node is a YAML value without what we have no use for: tags, styles, comments, anchors.
type node struct {
	kind   kind
	value  string  // of a scalar, as it was written, quotes and escapes resolved
	quoted bool    // a scalar in quotes or a block: always text
	line   int     // from 1
	keys   []*node // of a mapping, scalars; values[i] belongs to keys[i]
	values []*node // of a mapping or a sequence
}

const (
	// maxDepth bounds the nesting. The schema needs 4; it also ends an alias inside its own anchor.
	maxDepth = 16
	// maxAliased bounds the nodes that aliases add, so that a short file cannot become a huge tree.
	maxAliased = 10_000
)

// parseYAML turns text into a tree. Every error is an *Error with a line.
func parseYAML(file string, data []byte) (*node, error) {
	at := func(line int) Pos { return Pos{File: file, Line: line} }
	if len(data) > maxFile {
		return nil, at(1).Errorf("the file is larger than %d KiB (is it a configuration?)", maxFile>>10)
	}
	if line, what := unreadable(data); line > 0 {
		return nil, at(line).Errorf("%s (save the file as UTF-8 text)", what)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	doc, err := decodeNode(dec)
	if errors.Is(err, io.EOF) || err == nil && emptyDocument(doc) {
		return nil, at(1).Errorf("the file is empty (it wants at least filesystems: and exports:)")
	}
	if err != nil {
		line, what := yamlError(data, err)
		return nil, at(line).Errorf("%s", what)
	}
	if second, err := decodeNode(dec); !errors.Is(err, io.EOF) {
		line, _ := yamlError(data, err)
		if err == nil {
			line = second.Line
		}
		return nil, at(line).Errorf("a second document begins (remove the line \"---\" and join the two)")
	}
	b := treeBuilder{at: at}
	return b.build(doc.Content[0], 0, false)
}

// decodeNode reads the next document. The library's parser panics on its own broken assumptions; a mistake
// in a text must not end the server that reloads it.
func decodeNode(dec *yaml.Decoder) (doc *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("yaml: line 1: this is not YAML: %v", p)
		}
	}()
	doc = new(yaml.Node)
	err = dec.Decode(doc)
	return doc, err
}

func emptyDocument(doc *yaml.Node) bool {
	return len(doc.Content) == 0 || doc.Content[0].Kind == yaml.ScalarNode && doc.Content[0].ShortTag() == "!!null"
}

// unreadable finds the first byte that no YAML text may hold; the library would refuse it without a line.
func unreadable(data []byte) (line int, what string) {
	line = 1
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			return line, "a byte that is not UTF-8"
		case r == '\n':
			line++
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f, 0x80 <= r && r < 0xa0 && r != 0x85,
			r == '\ufeff' && i > 0, r == '\ufffe', r == '\uffff':
			return line, "a control character"
		}
		i += n
	}
	return 0, ""
}

// yamlError takes the library's "yaml: line 3: text" apart and adds a remedy.
func yamlError(data []byte, err error) (line int, what string) {
	if err == nil {
		return 1, ""
	}
	what = strings.TrimPrefix(err.Error(), "yaml: ")
	line = 1
	if rest, ok := strings.CutPrefix(what, "line "); ok {
		if nr, said, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(nr); err == nil && n > 0 {
				line, what = n, said
			}
		}
	}
	if rest, ok := strings.CutPrefix(what, "unknown anchor '"); ok { // the one message without a line
		name, _, _ := strings.Cut(rest, "'")
		before, _, _ := bytes.Cut(data, []byte("*"+name))
		return bytes.Count(before, []byte("\n")) + 1, fmt.Sprintf("no anchor &%s is defined above (write the value out)", name)
	}
	return line, what + " (" + yamlRemedy(what) + ")"
}

func yamlRemedy(what string) string {
	switch {
	case strings.Contains(what, "cannot start any token"):
		return "indent with spaces, and put values that begin with @, % or ` into quotes"
	case strings.Contains(what, "mapping values are not allowed"):
		return "check the indentation, and put values that hold \": \" into quotes"
	default:
		return "check the indentation and the quotes on this line and the one before"
	}
}

// treeBuilder turns the library's nodes into ours.
type treeBuilder struct {
	at      func(line int) Pos
	aliased int // nodes that came through aliases so far
}

func (b *treeBuilder) build(y *yaml.Node, depth int, aliased bool) (*node, error) {
	if depth > maxDepth {
		return nil, b.at(y.Line).Errorf("values are nested more than %d deep (write them out flat)", maxDepth)
	}
	if aliased {
		b.aliased++
		if b.aliased > maxAliased {
			return nil, b.at(y.Line).Errorf("aliases add more than %d values (write them out)", maxAliased)
		}
	}
	if y.Style&yaml.TaggedStyle != 0 {
		return nil, b.at(y.Line).Errorf("the tag %s is not supported (remove it)", quote(y.Tag))
	}
	switch y.Kind {
	case yaml.AliasNode:
		n, err := b.build(y.Alias, depth+1, true)
		if n != nil {
			n.line = y.Line // an element is where it is used, not where its text stands
		}
		return n, err
	case yaml.MappingNode:
		return b.mapping(y, depth, aliased)
	case yaml.SequenceNode:
		n := &node{kind: sequence, line: y.Line}
		for _, item := range y.Content {
			v, err := b.build(item, depth+1, aliased)
			if err != nil {
				return nil, err
			}
			n.values = append(n.values, v)
		}
		return n, nil
	default:
		quoted := y.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
		return &node{kind: scalarKind(y, quoted), value: y.Value, quoted: quoted, line: y.Line}, nil
	}
}

func (b *treeBuilder) mapping(y *yaml.Node, depth int, aliased bool) (*node, error) {
	n := &node{kind: mapping, line: y.Line}
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, err := b.build(y.Content[i], depth+1, aliased)
		if err != nil {
			return nil, err
		}
		if k.kind == mapping || k.kind == sequence {
			return nil, b.at(k.line).Errorf("a key is %s (keys are words)", k.kind)
		}
		if k.value == "<<" && !k.quoted {
			return nil, b.at(k.line).Errorf("the merge key << is not supported (write the keys out)")
		}
		v, err := b.build(y.Content[i+1], depth+1, aliased)
		if err != nil {
			return nil, err
		}
		n.keys, n.values = append(n.keys, k), append(n.values, v)
	}
	return n, nil
}

// scalarKind tells what YAML readers take a scalar for. The words that only YAML 1.1 reads as booleans
// count as such: who writes name: no means text, and half of the tools would not agree.
func scalarKind(y *yaml.Node, quoted bool) kind {
	if quoted {
		return text
	}
	switch strings.ToLower(y.Value) {
	case "y", "n", "yes", "no", "on", "off":
		return boolean
	}
	switch y.ShortTag() {
	case "!!int", "!!float":
		return number
	case "!!bool":
		return boolean
	case "!!null":
		return null
	default:
		return text
	}
}
