package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/btrexport/btrexport/configs"
)

// splitOffset takes FILE@OFFSET apart: what begins at a byte of a device or file, such as a partition. A path that is
// there, @ and all, is meant as it stands.
func splitOffset(device string) (path string, offset uint64, err error) {
	i := strings.LastIndexByte(device, '@')
	if i <= 0 || strings.Contains(device[i:], "/") || exists(device) || !exists(device[:i]) {
		return device, 0, nil
	}
	n, err := configs.ParseSize(device[i+1:])
	if err != nil {
		return "", 0, usagef("%s: offset %w", device, err)
	}
	return device[:i], uint64(n), nil
}

// exists tells also of what can't be looked at: opening it says why.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
