// Package docs finds the command blocks of the project's Markdown files and runs them, so that none can rot.
//
// A command block is a fenced block of the language sh or console. Those of a page are one session: they run in the
// order of the page, in one shell and one empty directory, as a reader would type them. What may stand in front of a block:
//
//	<!-- first: COMMAND -->    runs before it and isn't shown: what the reader already has, such as disks
//	<!-- run: e2e -->          runs where there are root, loop devices and NBD clients (test/e2e)
//	<!-- run: trial -->        runs where systemd has booted beside the source (packaging/trial)
//	<!-- run: guest -->        runs in a virtual machine whose kernel has the nbd module (test/e2e/guest)
//	<!-- run: demo -->         runs in CI from a fresh clone; so does test
//	<!-- not run: REASON -->   runs nowhere
//
// Without run or not run it is run by "go test ./...". In a console block a line that begins with "$ " or "# " is a command,
// the latter of root, up to the first line that doesn't end with a backslash; lines below it are all that it prints, on
// standard output and error. An … stands for any text within a line, and alone on a line for any lines; blanks side by side count as one. A command without such
// lines may print what it likes. Its exit status must be 0, unless the next command is "echo $?". One that ends with & stays:
// it is waited for until it has printed the lines below it, and what it prints later does not count.
//
// An sh block is one command, which ends at its first error.
package docs
