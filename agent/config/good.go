package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"gopkg.in/yaml.v3"
)

// goodName is the last configuration that worked, in the state directory (SEMANTICS 6.5).
const goodName = "config.good"

// goodMagic starts its first line; the checksum of the rest follows.
const goodMagic = "# lbagent config.good 1 sha256:"

// SaveGood writes c, which the main file `of` and its drop-ins made, to stateDir/config.good, atomically: what the files said, in one file, for a start at which they can't be read any more.
//
// Drop-ins are merged and every ${VAR} is replaced by its value, because the environment may be what broke. Comments are left out: nobody expects a copy of
// them, and a password may stand in one. No key holds a secret: passwords and private keys are always named by their file, and an endpoint with a user in
// it is refused. Absent keys stay absent, so that an older or newer version reads the file with its own defaults.
func SaveGood(stateDir, of string, c *Config) error {
	if c.good == nil {
		return errors.New("save configuration: it was not loaded from a file")
	}
	path := filepath.Join(stateDir, goodName)
	what, err := c.good.text()
	if err != nil {
		return err
	}
	body := append([]byte(goodOf(of)), what...)
	sum := sha256.Sum256(body)
	text := fmt.Appendf(nil, "%s%s\n%s", goodMagic, hex.EncodeToString(sum[:]), body)
	if old, err := readFile(path); err == nil && bytes.Equal(old.data, text) {
		return nil
	}
	if err := writeFile(path, text); err != nil {
		return fmt.Errorf("save configuration: %w", err)
	}
	return nil
}

// goodOf is the line that says which file a good configuration is of.
func goodOf(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return fmt.Sprintf("# of %q\n", path)
}

// writeFile replaces path by a file that is whole or not there. One writer at a time: the name of the temporary file is fixed, so that none piles up.
func writeFile(path string, data []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// LoadGood reads what SaveGood wrote of the main file `of`. An error that is fs.ErrNotExist says that there is none; that of another file is none, so that
// an agent that somebody tries out doesn't become the one that the host runs.
func LoadGood(stateDir, of string) (*Config, error) { return Options{}.LoadGood(stateDir, of) }

// LoadGood reads what SaveGood wrote.
func (o Options) LoadGood(stateDir, of string) (*Config, error) {
	path := filepath.Join(stateDir, goodName)
	s, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("load the last good configuration: %w", err)
	}
	head, text, _ := bytes.Cut(s.data, []byte("\n"))
	sum := sha256.Sum256(text)
	if want, ok := strings.CutPrefix(string(head), goodMagic); !ok || want != hex.EncodeToString(sum[:]) {
		return nil, fmt.Errorf("load the last good configuration: %s is torn or of another kind", path)
	}
	if !bytes.HasPrefix(text, []byte(goodOf(of))) {
		return nil, fmt.Errorf("load the last good configuration: %s is not of %s: %w", path, of, fs.ErrNotExist)
	}
	return o.withDefaults().parse([]source{s})
}

// StateDirOf is the state_dir of a main file that can't be loaded, as far as it can be told: what its line says, else def. It is for finding the last
// good configuration.
func (o Options) StateDirOf(path, def string) string {
	o = o.withDefaults()
	s, err := readFile(path)
	if err != nil {
		return def
	}
	for line := range strings.Lines(string(s.data)) {
		if !strings.HasPrefix(line, "state_dir:") || notText([]byte(line)) >= 0 {
			continue
		}
		doc, _, err := parseYAML([]byte(line))
		if err != nil || doc == nil || len(doc.Content) != 1 || len(doc.Content[0].Content) != 2 {
			return def
		}
		dir, err := expand(doc.Content[0].Content[1].Value, o.Env)
		if err != nil || !filepath.IsAbs(dir) {
			return def
		}
		return dir
	}
	return def
}

// good is what a Config was made of, for SaveGood: as text it takes a fraction of the room of its nodes.
type good struct {
	opt     Options
	sources []source
}

// text is the sources as one self-contained file.
func (g *good) text() ([]byte, error) {
	d := newDecoder(g.opt)
	var roots []value
	for _, s := range g.sources {
		root, ok := d.tree(s)
		if !ok {
			return nil, d.errs.orNil(nil) // it could be read when it was loaded
		}
		roots = append(roots, root)
	}
	return render(roots[0], roots[1:])
}

// render is the sources as one file: main with the services of all drop-ins, every value expanded, without comments.
func render(main value, dropIns []value) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	services := &yaml.Node{Kind: yaml.SequenceNode}
	for i, v := range append([]value{main}, dropIns...) {
		for j := 0; j+1 < len(v.node.Content); j += 2 {
			key, node := v.node.Content[j], v.node.Content[j+1]
			switch {
			case key.Value == "services":
				for _, c := range node.Content {
					services.Content = append(services.Content, bare(c))
				}
			case i == 0:
				root.Content = append(root.Content, bare(key), bare(node))
			}
		}
	}
	if len(services.Content) > 0 {
		root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: "services"}, services)
	}
	if len(root.Content) == 0 {
		return []byte{}, nil
	}
	text, err := yaml.Marshal(root)
	if err != nil {
		return nil, fmt.Errorf("write the configuration as YAML: %w", err)
	}
	return text, nil
}

// bare copies a node without comments; what would be expanded again is escaped.
func bare(n *yaml.Node) *yaml.Node {
	c := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: strings.ReplaceAll(n.Value, "$", "$$"), Style: n.Style}
	switch {
	case n.Kind != yaml.ScalarNode:
		c.Style, c.Tag = 0, ""
	case null(n):
		c.Value = "null"
	}
	for _, below := range n.Content {
		c.Content = append(c.Content, bare(below))
	}
	return c
}
