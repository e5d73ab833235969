package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/configs"
	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/fsread"
)

const (
	// completeWait bounds how long a shell waits for completions: a disk or a server that hangs must not hang it.
	completeWait = 2 * time.Second
	// completeMost bounds how many names of a directory are offered.
	completeMost = 10000
	// completeInside marks, in the environment, the process that looks for completions.
	completeInside = "BTREXPORT_COMPLETING"
	// defaultConfig and defaultSocket are where the packages have them.
	defaultConfig = "/etc/btrexport/btrexport.yaml"
	defaultSocket = "/run/btrexport/nbd.sock"
)

// completes says whether a command line is a shell's question, to be asked of another process: a thread that a disk
// holds in the kernel keeps its process from ending, and the shell would wait for that.
func completes(args []string) bool {
	return len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd) && os.Getenv(completeInside) == ""
}

// completeApart asks this program, in a process of its own.
func completeApart(args []string, out io.Writer) int {
	self, err := os.Executable()
	if err != nil {
		return exitFailed
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), completeInside+"=1")
	_, _ = out.Write(answerIn(cmd, completeWait)) // a shell that is gone wants no answer
	return exitDone
}

// answerIn gives what cmd prints, or the directive to complete nothing if that takes longer than wait: then cmd is
// killed, and left alone if it does not end of that.
func answerIn(cmd *exec.Cmd, wait time.Duration) []byte {
	nothing := []byte(fmt.Sprintf(":%d\n", cobra.ShellCompDirectiveNoFileComp))
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		return nothing
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			return nothing
		}
		return out.Bytes()
	case <-time.After(wait):
		_ = cmd.Process.Kill()
		return nothing
	}
}

// completion is what cobra asks for the words of one place.
type completion = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective)

// nothing is the answer where there is no word to offer, and file names would be wrong.
func nothing(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeFlag registers the completion of a flag, which must be there.
func completeFlag(cmd *cobra.Command, flag string, f completion) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

// patient is a context and a log for what must be fast and silent.
func patient() (context.Context, context.CancelFunc, *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), completeWait)
	return ctx, cancel, slog.New(slog.DiscardHandler)
}

// lenient are the flags for completions: what is there is offered, whatever is missing.
func (f *deviceFlags) lenient() *deviceFlags {
	l := *f
	l.degraded, l.allowMounted = true, true
	return &l
}

// imagePath completes a path inside the filesystem of the flags, for the arguments up to number last, from 0.
func (f *deviceFlags) imagePath(last int) completion {
	return func(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > last {
			return nothing(nil, nil, "")
		}
		return f.names(word, "")
	}
}

// copyArgs completes PATH inside the filesystem, and DEST among the files here.
func (f *deviceFlags) copyArgs(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return f.names(word, "")
	case 1:
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nothing(nil, nil, "")
}

// exportFlag completes the path of NAME=PATH.
func (f *deviceFlags) exportFlag(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	name, path, ok := strings.Cut(word, "=")
	if !ok {
		return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	return f.names(path, name+"=")
}

// names offers the entries of the directory that word lies in. Names that a shell's protocol can't carry are left out.
func (f *deviceFlags) names(word, before string) (list []string, d cobra.ShellCompDirective) {
	d = cobra.ShellCompDirectiveNoFileComp
	ctx, cancel, log := patient()
	defer cancel()
	fs, err := f.lenient().open(ctx, log, nil)
	if err != nil {
		return nil, d
	}
	sv, err := subvolume(ctx, fs, f.subvol, f.subvolID)
	if err != nil {
		return nil, d
	}
	dir, prefix := word[:strings.LastIndexByte(word, '/')+1], word[strings.LastIndexByte(word, '/')+1:]
	n, err := sv.Resolve(ctx, "/"+dir)
	if err != nil || !n.IsDir() {
		return nil, d
	}
	if !strings.HasPrefix(dir, "/") {
		dir = "/" + dir // paths begin at the top, as the subvolume has it
	}
	kept := 0
	entries, _ := sortedEntries(ctx, n, func(e *fsread.Entry) bool {
		ok := kept < completeMost && strings.HasPrefix(e.Name, prefix) && harmless(e.Name)
		if ok {
			kept++
		}
		return ok
	}) // what was read before an error stands
	for i := range entries {
		e := &entries[i]
		name := before + dir + e.Name
		if child, err := e.Node(ctx); err == nil && child.IsDir() {
			name += "/"
			d |= cobra.ShellCompDirectiveNoSpace
		}
		list = append(list, name)
	}
	return list, d
}

// subvolumePaths completes --subvol.
func (f *deviceFlags) subvolumePaths(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return f.subvolumes(func(id uint64, path string) string { return path }, word)
}

// subvolumeIDs completes --subvolid, with the paths beside them.
func (f *deviceFlags) subvolumeIDs(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return f.subvolumes(func(id uint64, path string) string { return strconv.FormatUint(id, 10) + "\t" + path }, word)
}

func (f *deviceFlags) subvolumes(offer func(id uint64, path string) string, word string) (list []string, d cobra.ShellCompDirective) {
	ctx, cancel, log := patient()
	defer cancel()
	fs, err := f.lenient().open(ctx, log, nil)
	if err != nil {
		return nothing(nil, nil, "")
	}
	all, _ := fs.Subvolumes(ctx) // what was read before an error stands
	for _, s := range all {
		if o := offer(s.ID, "/"+s.Path); harmless(s.Path) && strings.HasPrefix(o, word) {
			list = append(list, o)
		}
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// completeDevice offers block devices below /dev, and leaves all else to the shell, which knows files.
func completeDevice(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return devicesIn("/sys/class/block", word)
}

func devicesIn(sys, word string) (list []string, d cobra.ShellCompDirective) {
	name, ok := strings.CutPrefix(word, "/dev/")
	if !ok {
		return nil, cobra.ShellCompDirectiveDefault
	}
	entries, _ := os.ReadDir(sys) // none in a container without it
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name) && !strings.HasPrefix(e.Name(), "ram") {
			list = append(list, "/dev/"+strings.ReplaceAll(e.Name(), "!", "/"))
		}
	}
	return list, cobra.ShellCompDirectiveDefault
}

// nbdDevice completes the device of attach and detach.
func nbdDevice(_ *cobra.Command, _ []string, word string) (list []string, d cobra.ShellCompDirective) {
	nodes, _ := filepath.Glob("/dev/nbd*") // the pattern is well-formed
	for _, n := range nodes {
		if strings.HasPrefix(n, word) && !strings.Contains(n[len("/dev/nbd"):], "p") {
			list = append(list, n)
		}
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// attachArgs completes NBD-URI, then the device.
func attachArgs(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return exportURI(cmd, args, word)
	case 1:
		return nbdDevice(cmd, args, word)
	}
	return nothing(nil, nil, "")
}

// exportURI offers the exports of the configuration, at its first address, and those that running servers list: at
// the package's socket and at the host that the word names.
func exportURI(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nothing(nil, nil, "")
	}
	ctx, cancel, _ := patient()
	defer cancel()
	offers := configuredURIs()
	offers = append(offers, listedURIs(ctx, "unix://"+defaultSocket)...)
	for _, scheme := range []string{"nbd://", "nbds://"} {
		host, _, ok := strings.Cut(strings.TrimPrefix(word, scheme), "/")
		if !ok || !strings.HasPrefix(word, scheme) {
			continue
		}
		offers = append(offers, listedAt(ctx, scheme+host)...)
	}
	seen := make(map[string]bool)
	var list []string
	for _, uri := range offers {
		if strings.HasPrefix(uri, word) && !seen[uri] && harmless(uri) {
			seen[uri] = true
			list = append(list, uri)
		}
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// configuredURIs are those of BTREXPORT_CONFIG, or of the package's configuration.
func configuredURIs() (list []string) {
	file := os.Getenv("BTREXPORT_CONFIG")
	if file == "" {
		file = defaultConfig
	}
	c, err := configs.Load(file)
	if err != nil || len(c.Listen) == 0 {
		return nil
	}
	a, err := export.ParseAddress(c.Listen[0].String())
	if err != nil {
		return nil
	}
	for _, e := range c.Exports {
		if e.TLS == "require" || e.TLS == "" && c.TLS.Mode == "require" {
			list = append(list, a.SecureURI(e.Name))
			continue
		}
		list = append(list, a.URI(e.Name))
	}
	return list
}

// listedAt are the exports that the server at nbd://host lists.
func listedAt(ctx context.Context, server string) []string {
	t, err := nbdclient.ParseURI(server + "/")
	if err != nil {
		return nil
	}
	list, _ := nbdclient.List(ctx, t) // what came before an error stands
	var uris []string
	for _, l := range list {
		t.Export = l.Name
		// As the user has begun to write it: with the port left out, or not.
		if _, name, ok := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(t.URI(), "nbds://"), "nbd://"), "/"); ok {
			uris = append(uris, server+"/"+name)
		}
	}
	return uris
}

// listedURIs are the exports that the server at an address lists.
func listedURIs(ctx context.Context, address string) []string {
	a, err := export.ParseAddress(address)
	if err != nil {
		return nil
	}
	t, err := nbdclient.ParseURI(a.URI(""))
	if err != nil {
		return nil
	}
	list, _ := nbdclient.List(ctx, t) // what came before an error stands
	var uris []string
	for _, l := range list {
		uris = append(uris, a.URI(l.Name))
	}
	return uris
}

// oneOf completes one of some words.
func oneOf(words ...string) completion {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// directories leaves the word to the shell, which offers directories alone.
func directories(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// yamlFiles has the shell offer configuration files.
func yamlFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}

// addresses begins an address to listen on.
func addresses(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"unix:///", "tcp://"}, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeFlags registers what each command completes, beside the flags of devices, which do so themselves.
func completeFlags(root *cobra.Command) {
	completeFlag(root, "log-level", oneOf("debug", "info", "warn", "error"))
	completeFlag(root, "log-format", oneOf("text", "json"))
	for _, c := range root.Commands() {
		switch c.Name() {
		case "serve":
			c.ValidArgsFunction = nothing
			completeFlag(c, "config", yamlFiles)
			completeFlag(c, "listen", addresses)
			completeFlag(c, "metrics", addresses)
			for _, flag := range []string{"run", "drain-timeout"} {
				completeFlag(c, flag, nothing)
			}
		case "info", "subvolumes", "version":
			c.ValidArgsFunction = nothing
		case "sample":
			c.ValidArgsFunction = directories
		case "check-config":
			c.ValidArgsFunction = yamlFiles
		case "probe", "status":
			c.ValidArgsFunction = exportURI
		case "attach":
			c.ValidArgsFunction = attachArgs
		case "detach":
			c.ValidArgsFunction = nbdDevice
		}
		if c.Flags().Lookup("tls-certificates") != nil {
			completeFlag(c, "tls-certificates", directories)
			completeFlag(c, "tls-hostname", nothing)
		}
	}
}
