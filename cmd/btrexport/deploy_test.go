package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/btrexport/btrexport/configs"
)

// parses fails the test if a command line is not one of ours.
func parses(t *testing.T, where string, args []string) {
	t.Helper()
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard}
	cmd, rest, err := a.root().Find(args)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err != nil || !cmd.HasParent() {
		t.Errorf("%s: %q: %v", where, args, err)
	}
}

// TestUnitsCommands: systemd's units call commands that there are.
func TestUnitsCommands(t *testing.T) {
	units, err := filepath.Glob("../../configs/systemd/*.service")
	if err != nil || len(units) == 0 {
		t.Fatalf("%d units: %v", len(units), err)
	}
	expand := strings.NewReplacer("$OPTIONS", "--connections 4", "${URI}", "nbd://localhost/vm1", "%i", "nbd0")
	for _, unit := range units {
		found := 0
		for _, line := range fileLines(t, unit) {
			_, command, ok := strings.Cut(line, "=/usr/bin/btrexport ")
			if ok && strings.HasPrefix(line, "Exec") {
				parses(t, unit, strings.Fields(expand.Replace(command)))
				found++
			}
		}
		if found == 0 {
			t.Errorf("%s: calls nothing of ours", unit)
		}
	}
}

// TestImageCommands: so do the image's command and its health check.
func TestImageCommands(t *testing.T) {
	found := 0
	for _, line := range fileLines(t, "../../Dockerfile") {
		_, form, ok := strings.Cut(line, "CMD ")
		if !ok {
			continue
		}
		var args []string
		if err := json.Unmarshal([]byte(form), &args); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		parses(t, line, slices.DeleteFunc(args, func(s string) bool { return s == "/btrexport" }))
		found++
	}
	if found != 2 {
		t.Errorf("%d commands in the Dockerfile, want 2", found)
	}
}

func fileLines(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\n")
}

// object is what the test needs of a Kubernetes object.
type object struct {
	Kind     string
	Metadata struct{ Name string }
	Data     map[string]string
	Spec     struct {
		VolumeMode string `yaml:"volumeMode"`
		Ports      []struct{ TargetPort string }
		Template   struct {
			Spec podSpec
		}
	}
}

type podSpec struct {
	SecurityContext struct {
		RunAsNonRoot bool `yaml:"runAsNonRoot"`
	} `yaml:"securityContext"`
	Containers []container
	Volumes    []struct {
		Name                  string
		ConfigMap             struct{ Name string } `yaml:"configMap"`
		PersistentVolumeClaim struct {
			ClaimName string `yaml:"claimName"`
			ReadOnly  bool   `yaml:"readOnly"`
		} `yaml:"persistentVolumeClaim"`
	}
}

type container struct {
	Args  []string
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	StartupProbe    podProbe `yaml:"startupProbe"`
	ReadinessProbe  podProbe `yaml:"readinessProbe"`
	LivenessProbe   podProbe `yaml:"livenessProbe"`
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
	Resources struct {
		Requests, Limits map[string]string
	}
	VolumeDevices []struct {
		Name       string
		DevicePath string `yaml:"devicePath"`
	} `yaml:"volumeDevices"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type podProbe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

// TestKubernetesExample: its objects fit each other, the configuration in it is one of ours, and the server that it
// describes serves where the probes ask.
func TestKubernetesExample(t *testing.T) {
	text, err := os.ReadFile("../../configs/kubernetes/btrexport.yaml")
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]object{}
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var o object
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		objects[o.Kind] = o
	}
	for _, kind := range []string{"ConfigMap", "PersistentVolumeClaim", "StatefulSet", "Service"} {
		if objects[kind].Metadata.Name == "" {
			t.Fatalf("there is no %s", kind)
		}
	}
	pod := objects["StatefulSet"].Spec.Template.Spec
	if len(pod.Containers) != 1 {
		t.Fatalf("%d containers, want 1", len(pod.Containers))
	}
	c := pod.Containers[0]
	parses(t, "args", c.Args)
	config := loadEmbedded(t, objects["ConfigMap"].Data, c)
	var named, devices []string
	for _, d := range config.Filesystems[0].Devices {
		named = append(named, d.Path)
	}
	for _, d := range c.VolumeDevices {
		devices = append(devices, d.DevicePath)
	}
	if !slices.Equal(named, devices) {
		t.Errorf("the configuration names %q, the pod has %q", named, devices)
	}
	if objects["PersistentVolumeClaim"].Spec.VolumeMode != "Block" {
		t.Error("the volume is no block device")
	}
	volumesFit(t, pod, objects)
	ports := map[string]string{}
	for _, p := range c.Ports {
		ports[p.Name] = strconv.Itoa(p.ContainerPort)
	}
	if _, port, _ := strings.Cut(config.Metrics.Address, ":"); ports["metrics"] != port {
		t.Errorf("metrics are served on port %s, the pod's is %s", port, ports["metrics"])
	}
	if _, port, _ := strings.Cut(config.Listen[0].Address, ":"); ports["nbd"] != port {
		t.Errorf("NBD is served on port %s, the pod's is %s", port, ports["nbd"])
	}
	for want, p := range map[string]podProbe{"/-/ready": c.ReadinessProbe, "/-/healthy": c.LivenessProbe} {
		if p.HTTPGet.Path != want || p.HTTPGet.Port != "metrics" {
			t.Errorf("a probe asks %+v, want %s of port metrics", p.HTTPGet, want)
		}
	}
	if c.StartupProbe.HTTPGet.Path != "/-/ready" {
		t.Errorf("the startup probe asks %q", c.StartupProbe.HTTPGet.Path)
	}
	s := c.SecurityContext
	if !pod.SecurityContext.RunAsNonRoot || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
		t.Errorf("the pod may more than it needs: %+v", s)
	}
	if c.Resources.Requests["memory"] == "" || c.Resources.Limits["memory"] == "" {
		t.Error("no resources")
	}
}

// loadEmbedded loads the configuration as the container would.
func loadEmbedded(t *testing.T, data map[string]string, c container) *configs.Config {
	t.Helper()
	dir := t.TempDir()
	for name, text := range data {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mount, name := filepath.Split(c.Args[len(c.Args)-1])
	if len(c.VolumeMounts) != 1 || c.VolumeMounts[0].MountPath+"/" != mount {
		t.Errorf("%s is not where the configuration is mounted", mount)
	}
	config, err := configs.Load(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// volumesFit: every volume of the container is one of the pod, which is one of the objects.
func volumesFit(t *testing.T, pod podSpec, objects map[string]object) {
	t.Helper()
	var names []string
	for _, v := range pod.Volumes {
		names = append(names, v.Name)
		if claim := v.PersistentVolumeClaim; claim.ClaimName != "" && (claim.ClaimName != objects["PersistentVolumeClaim"].Metadata.Name || !claim.ReadOnly) {
			t.Errorf("volume %s: %+v", v.Name, claim)
		}
		if m := v.ConfigMap.Name; m != "" && m != objects["ConfigMap"].Metadata.Name {
			t.Errorf("volume %s: there is no ConfigMap %s", v.Name, m)
		}
	}
	for _, d := range pod.Containers[0].VolumeDevices {
		if !slices.Contains(names, d.Name) {
			t.Errorf("%s: there is no volume %s", d.DevicePath, d.Name)
		}
	}
	if m := pod.Containers[0].VolumeMounts[0]; !slices.Contains(names, m.Name) {
		t.Errorf("%s: there is no volume %s", m.MountPath, m.Name)
	}
}
