package main

import (
	"fmt"
	"io"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// version is set by the release build: -ldflags "-X main.version=0.3.0".
var version = ""

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of btrexport, its modules, Go and the kernel; CPU features",
		Args:  arguments(0, 0, "no argument"),
	}
	a.jsonFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		v := thisBuild()
		if a.json {
			return printJSON(a.out, v)
		}
		return v.print(a.out)
	}
	return cmd
}

// build describes the program and where it runs.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source; "+" behind it: with changes
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	CPUs     int    `json:"cpus"`
	// Features are the processor's, as golang.org/x/sys/cpu calls them in small letters.
	Features []string `json:"cpu_features"`
	Modules  []module `json:"modules"` // that are linked
	Kernel   string   `json:"kernel"`
}

type module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
}

func thisBuild() build {
	b := build{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Kernel: kernelRelease(),
		Features: cpuFeatures()}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.fill(info)
	}
	if b.Version == "" {
		b.Version = "devel"
	}
	return b
}

// fill takes from the build what -ldflags did not say.
func (b *build) fill(info *debug.BuildInfo) {
	if b.Version == "" && info.Main.Version != "(devel)" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.Revision = s.Value + b.Revision
		case s.Key == "vcs.modified" && s.Value == "true":
			b.Revision += "+"
		}
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		b.Modules = append(b.Modules, module{m.Path, m.Version})
	}
}

// cpuFeatures are those that decide how fast checksums and decoders are, and which of their variants runs.
func cpuFeatures() []string {
	list := []string{}
	var features any
	switch runtime.GOARCH {
	case "amd64":
		features = cpu.X86
	case "arm64":
		features = cpu.ARM64
	default:
		return list
	}
	v := reflect.ValueOf(features)
	for i := range v.NumField() {
		if name, ok := strings.CutPrefix(v.Type().Field(i).Name, "Has"); ok && v.Field(i).Bool() {
			list = append(list, strings.ToLower(name))
		}
	}
	return list
}

func (b *build) print(w io.Writer) error {
	revision := ""
	if b.Revision != "" {
		revision = " (" + b.Revision + ")"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "btrexport %s%s\n%s %s/%s, %d CPUs: %s\nkernel %s\n", b.Version, revision, b.Go, b.OS, b.Arch, b.CPUs, dash(strings.Join(b.Features, " ")), b.Kernel)
	for _, m := range b.Modules {
		fmt.Fprintf(&text, "module %s %s\n", m.Path, m.Version)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}
