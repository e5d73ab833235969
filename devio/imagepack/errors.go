package imagepack

import "errors"

var (
	// ErrLimit: the pack holds more than the Limits allow.
	ErrLimit = errors.New("pack exceeds its limits")
	// ErrName: a file name is not usable: it has a directory, or characters that no image needs.
	ErrName = errors.New("unusable file name")
	// ErrType: an entry is not a regular file.
	ErrType = errors.New("not a regular file")
	// ErrExists: a file is in the way.
	ErrExists = errors.New("file exists")
)
