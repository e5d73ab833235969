// Package configs reads the configuration of btrexport serve: YAML text, or the flags that stand in for it,
// become one Config whose every value is checked and whose every default is filled in.
//
// The text travels yaml.go (YAML to a tree of our own, the only file that knows the YAML library), decode.go
// (tree to Config, key by key), check.go (what holds between elements: names, references). Flags enter at
// check.go. Parse and FromFlags are pure; Load reads one file. Nothing here opens a device or a socket: an
// element keeps its Pos, so that who does can name the file and the line of what turns out to be missing.
//
// The package is strict where YAML is not: an unknown or doubled key, a second document, yes for true, 010
// for 8 or 10, a size of 64M are refused and never guessed. A promised key that this version cannot honour
// is refused too: who set it relies on its effect.
package configs
