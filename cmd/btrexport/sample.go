package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/devio/imagepack"
)

//go:embed sample/sample.tar.zst
var samplePack []byte

//go:embed sample/sample.json
var sampleManifest []byte

// sampleMeta is what is needed of the sample's manifest.
type sampleMeta struct {
	Label   string `json:"label"`
	UUID    string `json:"uuid"`
	Devices []struct {
		File string `json:"file"`
	} `json:"devices"`
}

func (a *app) sampleCommand() *cobra.Command {
	var force, damage bool
	cmd := &cobra.Command{
		Use:   "sample DIR",
		Short: "Write a small two-device raid1 btrfs to play with",
		Long: "sample writes disk0.img and disk1.img, the two devices of a raid1 filesystem that a Linux kernel made, into DIR. " +
			"With --damage, images that are there already are kept, and some blocks of disk0.img are overwritten: every one of them has a good copy on disk1.img.\n\n" + exitHelp,
		Example: "  btrexport sample demo\n  btrexport sample demo --damage",
		Args:    arguments(1, 1, "one DIR"),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "overwrite images that are there already")
	cmd.Flags().BoolVar(&damage, "damage", false, "ruin one copy of some blocks, and tell which")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.sample(cmd.Context(), args[0], force, damage)
	}
	return cmd
}

func (a *app) sample(ctx context.Context, dir string, force, damage bool) error {
	var meta sampleMeta
	if err := json.Unmarshal(sampleManifest, &meta); err != nil {
		return fmt.Errorf("%w: embedded manifest: %w", errInternal, err)
	}
	var paths []string
	there := 0
	for _, d := range meta.Devices {
		p := filepath.Join(dir, d.File)
		paths = append(paths, p)
		if _, err := os.Lstat(p); err == nil {
			there++
		}
	}
	if !damage || force || there < len(paths) {
		if err := a.unpackSample(dir, &meta, paths, force); err != nil {
			return err
		}
	}
	if !damage {
		return nil
	}
	return a.damageSample(ctx, paths, meta.UUID)
}

func (a *app) unpackSample(dir string, meta *sampleMeta, paths []string, force bool) error {
	if !force {
		for _, p := range paths {
			if _, err := os.Lstat(p); err == nil {
				return fmt.Errorf("%s: %w (use -f to overwrite it)", p, os.ErrExist)
			}
		}
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("create %s: %w", dir, bare(err))
	}
	_, err := imagepack.Unpack(bytes.NewReader(samplePack), dir, imagepack.Limits{Overwrite: force})
	if errors.Is(err, imagepack.ErrExists) {
		return fmt.Errorf("%w: %w", err, os.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", dir, err)
	}
	fmt.Fprintf(a.out, "wrote %s %s (btrfs %q, raid1, %d devices)\n", shown(paths[0]), shown(paths[1]), meta.Label, len(paths))
	fmt.Fprintf(a.out, "try:  btrexport ls -d %s -d %s -l /@images\n", shown(paths[0]), shown(paths[1]))
	return nil
}
