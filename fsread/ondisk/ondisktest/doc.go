// Package ondisktest encodes btrfs structures for tests: the inverse of package ondisk.
//
// Tests of ondisk, volume, btree and fsread build good structures with it and break single fields; no
// program may import it. Nothing is validated, so that bad structures can be built as well, but what does
// not fit into a block panics: that is a mistake of the test.
package ondisktest
