package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/btrexport/btrexport/internal/spelling"
)

// app is one run of the program.
type app struct {
	in       io.Reader
	out, err io.Writer
	log      *slog.Logger // set before a command runs

	logLevel, logFormat string
	json                bool // of the command that runs
	started             bool // a command's own code has begun: flags and arguments were right
}

const intro = `btrexport reads files out of btrfs and serves them over NBD: no root, no mount, never a write.

  btrexport sample DIR                    a small raid1 btrfs to play with
  btrexport info -d DEVICE...             label, devices, profiles, features
  btrexport ls -d DEVICE... [PATH]        list a directory (-l long, -R recursive)
  btrexport cp -d DEVICE... PATH DEST     copy a file out, every block verified
  btrexport serve -d DEVICE... -e NAME=PATH   serve a file over NBD

All commands: btrexport --help. One command: btrexport COMMAND --help. Topics: btrexport help recovery.
Documentation: btrexport(1), https://github.com/btrexport/btrexport
`

const exitHelp = `Exit status: 0 done; 1 what was asked for is right and failed (I/O, bad data, permission, a busy address);
2 what was asked for must change (flags, arguments, configuration, the set of devices, a name that is not there).`

// run runs one command line and gives its exit status.
func run(args []string, in io.Reader, out, errOut io.Writer) (status int) {
	a := &app{in: in, out: out, err: errOut, json: asksJSON(args)}
	defer func() {
		if v := recover(); v != nil {
			a.report(fmt.Errorf("%w: %v (please report it with the output of: btrexport version; btrexport info --json)", errInternal, v))
			if os.Getenv("BTREXPORT_DEBUG") != "" {
				fmt.Fprintf(errOut, "%s", debug.Stack())
			}
			status = exitFailed
		}
	}()
	if completes(args) {
		return completeApart(args, out)
	}
	// A pipe that nobody reads any more ends the program quietly, as it does every other one; SIGINT and
	// SIGTERM let commands clean up. serve has its own way with signals.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second one ends the program at once
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil && !a.started {
		err = usageKind{err}
	}
	switch {
	case err == nil:
		return exitDone
	case ctx.Err() != nil && !errors.As(err, new(exitStatus)):
		err = errInterrupted
	}
	return a.report(err)
}

// asksJSON looks for --json by hand: errors of the flags themselves are told in JSON too.
func asksJSON(args []string) bool {
	for _, arg := range args {
		if arg == "--" {
			return false
		}
		if arg == "--json" || arg == "--json=true" {
			return true
		}
	}
	return false
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:                "btrexport",
		Short:              "Read files out of btrfs and serve them over NBD",
		Long:               "btrexport reads files out of btrfs filesystems and serves them over NBD, without mounting and without writing.\n\n" + exitHelp,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.setLog(cmd); err != nil {
				return err
			}
			a.started = true
			return nil
		},
	}
	root.Args = func(_ *cobra.Command, args []string) error { return unknownCommand(root, args) }
	root.RunE = func(*cobra.Command, []string) error {
		_, err := io.WriteString(a.out, intro)
		return err
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().StringVar(&a.logLevel, "log-level", "", "what to log: debug, info, warn or error (default: info for serve and attach, else warn)")
	root.PersistentFlags().StringVar(&a.logFormat, "log-format", "text", "text or json")
	root.AddCommand(a.serveCommand(), a.lsCommand(), a.infoCommand(), a.mapCommand(), a.cpCommand(), a.verifyCommand(), a.subvolumesCommand(),
		a.sampleCommand(), a.checkConfigCommand(), a.probeCommand(), a.statusCommand(), a.attachCommand(), a.detachCommand(), a.relayCommand(), a.versionCommand())
	root.AddCommand(topics()...)
	strictDefaults(root)
	completeFlags(root)
	return root
}

// strictDefaults makes cobra's own commands refuse what they do not know, instead of showing their help.
func strictDefaults(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = func(_ *cobra.Command, args []string) error {
				if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
					return unknownCommand(root, args)
				}
				return nil
			}
			c.ValidArgsFunction = func(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
				return helpWords(root, args, word)
			}
		case "completion":
			c.RunE = func(*cobra.Command, []string) error { return c.Help() }
		}
	}
}

// helpWords completes what help tells about: commands and topics.
func helpWords(root *cobra.Command, args []string, word string) (list []string, d cobra.ShellCompDirective) {
	if len(args) == 0 {
		for _, c := range root.Commands() {
			if !c.Hidden && strings.HasPrefix(c.Name(), word) {
				list = append(list, c.Name()+"\t"+c.Short)
			}
		}
	}
	return list, cobra.ShellCompDirectiveNoFileComp
}

// unknownCommand refuses what is no command, and says what it may have been meant for.
func unknownCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range root.Commands() { // topics too, which cobra leaves out
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	if near, ok := spelling.Nearest(args[0], names); ok {
		return fmt.Errorf("unknown command %q (did you mean %s?)", args[0], near)
	}
	return fmt.Errorf("unknown command %q (btrexport --help lists them)", args[0])
}

// flagError says what was wrong with a flag, and what an unknown one may have been meant for.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		if near, ok := spelling.Nearest(unknown.GetSpecifiedName(), names); ok {
			return fmt.Errorf("%w (did you mean --%s?)", err, near)
		}
	}
	// "strconv.ParseUint: parsing" says in Go's words what the sentence before it says.
	what, _, _ := strings.Cut(err.Error(), ": strconv.")
	return fmt.Errorf("%s (see %s --help)", what, cmd.CommandPath())
}

// arguments accepts between least and most positional arguments; want names them in errors.
func arguments(least, most int, want string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("%s wants %s, %d given (see %s --help)", cmd.Name(), want, len(args), cmd.CommandPath())
		case len(args) > most:
			return fmt.Errorf("%s wants %s, %d given: %q is too much (see %s --help)", cmd.Name(), want, len(args), args[most], cmd.CommandPath())
		}
		return nil
	}
}

func (a *app) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", a.json, "print JSON, one object per line; errors too")
}

// setLog makes the logger. serve and attach inform, others only warn.
func (a *app) setLog(cmd *cobra.Command) error {
	level := a.logLevel
	if level == "" {
		level = os.Getenv("BTREXPORT_LOG_LEVEL")
	}
	if level == "" {
		level = "warn"
		// serve informs, unless a program waits for what another one does.
		if run, err := cmd.Flags().GetString("run"); err == nil && run == "" {
			if stdio, err := cmd.Flags().GetBool("stdio"); err == nil && !stdio {
				level = "info"
			}
		}
		if cmd.Flags().Lookup("reconnect") != nil { // attach: what it leaves behind
			level = "info"
		}
	}
	log, err := newLogger(a.err, level, a.logFormat, os.Getenv("JOURNAL_STREAM") != "")
	a.log = log
	return err
}

// newLogger makes a logger; journal drops the time, which journald notes itself.
func newLogger(w io.Writer, level, format string, journal bool) (*slog.Logger, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	l, ok := levels[strings.ToLower(level)]
	if !ok {
		return nil, fmt.Errorf("log level %q is none of debug, info, warn, error (set --log-level or BTREXPORT_LOG_LEVEL)", level)
	}
	o := &slog.HandlerOptions{Level: l}
	if journal {
		o.ReplaceAttr = func(groups []string, attr slog.Attr) slog.Attr {
			if len(groups) == 0 && attr.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return attr
		}
	}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("log format %q is neither text nor json (set --log-format)", format)
}

// report prints an error, one line for each that was joined, and gives the exit status.
func (a *app) report(err error) int {
	var own exitStatus
	if errors.As(err, &own) {
		return int(own)
	}
	status := exitFailed
	for _, e := range each(err) {
		code, kind := classify(e)
		status = max(status, code)
		text := printable(withRemedy(e))
		if a.json {
			printJSON(a.err, exitError{"exit_error", code, kind, text})
			continue
		}
		fmt.Fprintf(a.err, "btrexport: %s\n", text)
	}
	return status
}

// exitError is an error as --json tells it.
type exitError struct {
	MessageType string `json:"message_type"`
	Code        int    `json:"code"`
	Kind        string `json:"kind"`
	Message     string `json:"message"`
}
