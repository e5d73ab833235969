package main

// What each expression is narrowed to: by who was scraped, and by filesystem where the metric has one.
const (
	at = `job=~"$job",instance=~"$instance"`
	on = at + `,filesystem=~"$filesystem"`
)

var (
	red    = []step{{1, "red"}}
	orange = []step{{1, "orange"}}
)

func dashboards() []dashboard { return []dashboard{overview(), devices()} }

func stat(title, description, expr string, steps []step) panel {
	return panel{kind: "stat", title: title, description: description, unit: "short", width: 3, targets: []target{{expr, ""}}, steps: steps}
}

func graph(title, description, unit string, targets ...target) panel {
	return panel{kind: "timeseries", title: title, description: description, unit: unit, width: 8, targets: targets}
}

func stacked(p panel) panel {
	p.stack = true
	return p
}

func wide(width int, p panel) panel {
	p.width = width
	return p
}

// raised counts over the time that is shown, and rounds up: less than one block is none.
func raised(metric string) string {
	return `ceil(sum(increase(` + metric + `{` + on + `}[$__range])))`
}

func rate(by, metric, matchers string) string {
	return `sum by (` + by + `) (rate(` + metric + `{` + matchers + `}[$__rate_interval]))`
}

func quantile(q, by, metric, matchers string) string {
	return `histogram_quantile(` + q + `, sum by (` + by + `, le) (rate(` + metric + `_bucket{` + matchers + `}[$__rate_interval])))`
}

// loss is the row that answers without a mouse.
func loss() row {
	reload := stat("Configuration", "Whether the last attempt to load the configuration succeeded. If not, the one before is served, and a restart would fail.",
		`min(btrexport_config_last_reload_successful{`+at+`})`, nil)
	reload.steps = []step{{0, "red"}, {1, "green"}}
	reload.words = object{"0": object{"text": "refused", "index": 0}, "1": object{"text": "loaded", "index": 1}}
	return row{"Is data being lost?", 4, []panel{
		stat("Blocks lost", "Blocks that no copy could serve, in the time shown: clients got I/O errors for them. Above 0: see the runbook of BtrexportReadsLost.", raised("btrexport_reads_lost_total"), red),
		stat("Blocks repaired", "Blocks that another copy or the parity served after the first failed, in the time shown. Nothing is lost and nothing on disk is mended: run btrfs scrub.", raised("btrexport_reads_repaired_total"), orange),
		stat("Checksum failures", "Blocks that a device delivered and that were not what was written, in the time shown.", raised("btrexport_checksum_failures_total"), orange),
		stat("Device read errors", "Reads that a device failed or cut short, in the time shown.", raised("btrexport_device_read_errors_total"), orange),
		stat("Degraded filesystems", "Filesystems that are served without one of their devices.", `sum(btrexport_filesystem_degraded{`+on+`})`, orange),
		stat("Devices down", "Devices that are missing, or failed their last reads.", `sum(btrexport_device_up{`+on+`} == bool 0)`, orange),
		reload,
		stat("Panics", "Connections that a mistake in btrexport ended, in the time shown: please report what the log says.",
			`ceil(sum(increase(btrexport_panics_total{`+at+`}[$__range])))`, orange),
	}}
}

func overview() dashboard {
	const requests, reads = "btrexport_nbd_request_duration_seconds", at + `,command="read"`
	return dashboard{"btrexport-overview", "btrexport / overview", "Files of btrfs filesystems served over NBD: is data lost, what do clients get, and what does it cost.", []row{
		loss(),
		{"What clients get", 8, []panel{
			graph("Throughput", "Bytes that successful reads returned, by export.", "Bps", target{rate("export", "btrexport_nbd_read_bytes_total", at), "{{export}}"}),
			graph("Requests", "Requests of clients, by export.", "reqps", target{rate("export", "btrexport_nbd_requests_total", at), "{{export}}"}),
			graph("Read latency", "Time from a read request to its complete reply: half of all, and 99 of 100, keep below.", "s",
				target{quantile("0.5", "export", requests, reads), "{{export}} p50"}, target{quantile("0.99", "export", requests, reads), "{{export}} p99"}),
			graph("Failed requests", "Requests that were answered with an error: what is lost, and commands that write, since exports are read-only.", "reqps",
				target{rate("export", "btrexport_nbd_requests_total", at+`,result="error"`), "{{export}}"}),
			graph("Requests in flight", "Requests that clients wait for.", "short", target{`sum by (export) (btrexport_nbd_inflight_requests{` + at + `})`, "{{export}}"}),
			graph("Connections", "Clients that have an export, by listening address.", "short", target{`sum by (listener) (btrexport_nbd_connections{` + at + `})`, "{{listener}}"}),
		}},
		{"What devices do", 8, []panel{
			graph("Device throughput", "Bytes that devices delivered. More than clients got: metadata, copies, read ahead.", "Bps",
				target{rate("filesystem, devid", "btrexport_device_read_bytes_total", on), "{{filesystem}} {{devid}}"}),
			graph("Device latency, 99 of 100", "Time from sending a read to a device to its completion.", "s",
				target{quantile("0.99", "filesystem, devid", "btrexport_device_read_duration_seconds", on), "{{filesystem}} {{devid}}"}),
			graph("Blocks asked of another copy", "By the device that failed, and why: an error, a wrong checksum, or too slow.", "ops",
				target{rate("filesystem, devid, reason", "btrexport_read_retries_total", on), "{{filesystem}} {{devid}} {{reason}}"}),
		}},
		{"Cache and decompression", 8, []panel{
			wide(6, graph("Cache hits", "Of the tree blocks and inflated extents that were asked for, those that were in memory.", "percentunit",
				target{rate("filesystem, kind", "btrexport_cache_hits_total", on) + ` / (` + rate("filesystem, kind", "btrexport_cache_hits_total", on) + ` + ` +
					rate("filesystem, kind", "btrexport_cache_misses_total", on) + `)`, "{{filesystem}} {{kind}}"})),
			wide(6, stacked(graph("Cache size", "Memory that tree blocks and inflated extents take. The bound is the filesystem's key cache.", "bytes",
				target{`sum by (filesystem, kind) (btrexport_cache_bytes{` + on + `})`, "{{filesystem}} {{kind}}"}))),
			wide(6, graph("Evictions", "Tree blocks and inflated extents that gave way to others. Many, with few hits: a larger cache would help.", "ops",
				target{rate("filesystem, kind", "btrexport_cache_evictions_total", on), "{{filesystem}} {{kind}}"})),
			wide(6, stacked(graph("Cores decompressing", "Time that decoders worked, per second.", "short",
				target{rate("filesystem, algorithm", "btrexport_decompress_seconds_total", on), "{{filesystem}} {{algorithm}}"}))),
			wide(12, graph("Read ahead", "Bytes that were read before a client asked, and those of them that were asked for.", "Bps",
				target{rate("export", "btrexport_nbd_readahead_bytes_total", at), "{{export}} read"}, target{rate("export", "btrexport_nbd_readahead_used_bytes_total", at), "{{export}} used"})),
			wide(12, graph("Blocks without a checksum", "Blocks that were served with nothing to hold them against (files with NODATASUM).", "ops",
				target{rate("filesystem", "btrexport_reads_unverified_total", on), "{{filesystem}}"})),
		}},
		{"Process", 8, []panel{
			wide(6, graph("CPU", "Cores that the process uses.", "short", target{rate("instance", "process_cpu_seconds_total", at), "{{instance}}"})),
			wide(6, graph("Memory", "Resident memory, and Go's heap.", "bytes", target{`process_resident_memory_bytes{` + at + `}`, "{{instance}} resident"},
				target{`go_memstats_heap_inuse_bytes{` + at + `}`, "{{instance}} heap"})),
			wide(6, graph("Descriptors", "Open file descriptors.", "short", target{`process_open_fds{` + at + `}`, "{{instance}}"})),
			wide(6, graph("Goroutines", "Goroutines of the process.", "short", target{`go_goroutines{` + at + `}`, "{{instance}}"})),
			wide(8, graph("Handshakes", "Handshakes by their end.", "ops", target{rate("result", "btrexport_nbd_handshakes_total", at), "{{result}}"})),
			wide(8, graph("Clients refused", "Clients that a limit kept from an export.", "ops", target{rate("listener, reason", "btrexport_nbd_connections_refused_total", at), "{{listener}} {{reason}}"})),
			{kind: "table", title: "Builds", description: "Which build runs where, and since when its configuration is served.", unit: "short", width: 8,
				targets: []target{{`btrexport_build_info{` + at + `}`, ""},
					{`time() - btrexport_config_last_reload_success_timestamp_seconds{` + at + `}`, ""}},
				columns: []string{"instance", "version", "revision", "goversion", "Value #B"}},
		}},
	}}
}

func devices() dashboard {
	const byDevice, series = "filesystem, devid", "{{filesystem}} {{devid}}"
	const took = "btrexport_device_read_duration_seconds"
	return dashboard{"btrexport-devices", "btrexport / devices", "Which disk fails, which one is slow, and what the kernel had noted of it before.", []row{
		{"Which devices", 8, []panel{
			{kind: "table", title: "Devices", description: "What stands behind a devid, and whether it is up: 0 is missing, or failed its last reads.", unit: "short", width: 12,
				targets: []target{{`btrexport_device_up{` + on + `} * on (job, instance, filesystem, devid) group_left (path, model) btrexport_device_info{` + on + `}`, ""}},
				columns: []string{"instance", "filesystem", "devid", "path", "model", "Value"}},
			{kind: "table", title: "Filesystems", description: "What stands behind a filesystem's name, and how its blocks are kept.", unit: "short", width: 12,
				targets: []target{{`btrexport_filesystem_info{` + on + `}`, ""}},
				columns: []string{"instance", "filesystem", "label", "uuid", "data_profile", "metadata_profile"}},
		}},
		{"Errors", 8, []panel{
			wide(6, graph("Read errors", "Reads that a device failed or cut short.", "ops", target{rate(byDevice, "btrexport_device_read_errors_total", on), series})),
			wide(6, graph("Checksum failures", "Blocks that a device delivered and that were not what was written.", "ops",
				target{rate(byDevice+", kind", "btrexport_checksum_failures_total", on), series + " {{kind}}"})),
			wide(6, graph("Blocks repaired", "Blocks that a mirror served after a retry, or that were rebuilt from parity.", "ops",
				target{rate("filesystem, source", "btrexport_reads_repaired_total", on), "{{filesystem}} {{source}}"})),
			wide(6, graph("Blocks lost", "Blocks that no copy could serve.", "ops", target{rate("filesystem", "btrexport_reads_lost_total", on), "{{filesystem}}"})),
			wide(12, graph("Blocks asked of another copy", "By the device that failed, and why.", "ops",
				target{rate(byDevice+", reason", "btrexport_read_retries_total", on), series + " {{reason}}"})),
			{kind: "table", title: "Errors on record", description: "What the kernel had noted of each device when the filesystem was opened, as btrfs device stats shows it. They stand until btrfs device stats -z.", unit: "short", width: 12,
				targets: []target{{`btrexport_device_recorded_errors{` + on + `}`, ""}},
				columns: []string{"instance", "filesystem", "devid", "kind", "Value"}},
		}},
		{"Speed", 8, []panel{
			{kind: "heatmap", title: "Read latency", description: "How many reads took how long, all devices shown together.", unit: "s", width: 12,
				targets: []target{{`sum by (le) (increase(` + took + `_bucket{` + on + `}[$__rate_interval]))`, "{{le}}"}}},
			wide(12, graph("Read latency by device", "Half of the reads, and 99 of 100, keep below. One that stands out is slow or about to fail.", "s",
				target{quantile("0.5", byDevice, took, on), series + " p50"}, target{quantile("0.99", byDevice, took, on), series + " p99"})),
			wide(6, graph("Queue depth", "Reads that a device has been sent and has not completed.", "short",
				target{`sum by (` + byDevice + `) (btrexport_device_queue_depth{` + on + `})`, series})),
			wide(6, graph("Reads", "Reads sent to a device.", "iops", target{rate(byDevice, "btrexport_device_reads_total", on), series})),
			wide(6, graph("Throughput", "Bytes that a device delivered.", "Bps", target{rate(byDevice, "btrexport_device_read_bytes_total", on), series})),
			wide(6, graph("Reads per system call", "How many reads go to a device at once.", "short",
				target{rate(byDevice, "btrexport_device_reads_total", on) + ` / ` + rate(byDevice, "btrexport_device_submissions_total", on), series})),
		}},
	}}
}
