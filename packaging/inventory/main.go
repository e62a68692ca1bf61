// Command inventory says what a built lbagent consists of: `inventory BINARY sbom` prints a software bill of materials (CycloneDX 1.5, JSON; the
// environment's VERSION stands in it), and `inventory BINARY licences` the licences of everything in it. Both come from the binary itself and the module cache, so they can't be out of date.
package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "inventory: %v\n", err)
		os.Exit(1)
	}
}

func run(w io.Writer, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: inventory BINARY sbom|licences")
	}
	binary := args[0]
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	parts, err := partsOf(info)
	if err != nil {
		return err
	}
	switch args[1] {
	case "sbom":
		return writeSBOM(w, binary, os.Getenv("VERSION"), info, parts)
	case "licences":
		return writeLicences(w, parts)
	}
	return fmt.Errorf("%q is neither sbom nor licences", args[1])
}

// part is a module that is linked in, or Go itself.
type part struct {
	name, version, purl string
	licence             string   // as SPDX calls it
	texts               []string // files with its licence and notices
}

// partsOf finds the licence of every module in the binary; one without is an error, since it may not be shipped.
func partsOf(info *debug.BuildInfo) ([]part, error) {
	root, err := goTool("env", "GOROOT")
	if err != nil {
		return nil, err
	}
	std := part{name: "stdlib", version: strings.TrimPrefix(info.GoVersion, "go"), texts: licenceFiles(root)}
	if len(std.texts) == 0 { // distributions put it elsewhere
		std.texts = licenceFiles(filepath.Join(root, ".."))
	}
	std.purl = "pkg:golang/stdlib@" + std.version
	parts := []part{std}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		dir, err := goTool("list", "-m", "-f", "{{.Dir}}", m.Path)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{name: m.Path, version: m.Version, purl: "pkg:golang/" + m.Path + "@" + m.Version, texts: licenceFiles(dir)})
	}
	for i, p := range parts {
		if len(p.texts) == 0 {
			return nil, fmt.Errorf("%s %s has no licence", p.name, p.version)
		}
		text, err := os.ReadFile(p.texts[0])
		if err != nil {
			return nil, err
		}
		if parts[i].licence = licenceOf(string(text)); parts[i].licence == "" {
			return nil, fmt.Errorf("%s %s: nobody has said yet what licence %s is", p.name, p.version, p.texts[0])
		}
	}
	return parts, nil
}

func goTool(args ...string) (string, error) {
	out, err := exec.Command(cmp.Or(os.Getenv("GO"), "go"), args...).Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// licenceFiles are the texts at the top of a module, the licence first. Some modules have several licences and keep each in a file.
func licenceFiles(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var licences, notices []string
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		switch {
		case e.IsDir() || strings.HasSuffix(name, ".GO"):
		case strings.HasPrefix(name, "LICENSE"), strings.HasPrefix(name, "LICENCE"), strings.HasPrefix(name, "COPYING"):
			licences = append(licences, filepath.Join(dir, e.Name()))
		case strings.HasPrefix(name, "NOTICE"), strings.HasPrefix(name, "PATENTS"):
			notices = append(notices, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(licences)
	slices.Sort(notices)
	return append(licences, notices...)
}

// licenceOf names the licences of a text by sentences that only they have, as an expression of SPDX; "" if it's none that we know to be free to ship.
func licenceOf(text string) string {
	text = strings.Join(regexp.MustCompile(`[A-Za-z0-9.]+`).FindAllString(text, -1), " ")
	var found []string
	for _, known := range []struct{ id, sentence string }{
		{"Apache-2.0", "Apache License Version 2.0"},
		{"MPL-2.0", "Mozilla Public License"},
		{"MIT", "Permission is hereby granted free of charge to any person obtaining a copy"},
		{"BSD-3-Clause", "may be used to endorse or promote products derived from this software"},
		{"BSD-2-Clause", "Redistribution and use in source and binary forms"},
	} {
		if strings.Contains(text, known.sentence) && !(known.id == "BSD-2-Clause" && slices.Contains(found, "BSD-3-Clause")) {
			found = append(found, known.id)
		}
	}
	return strings.Join(found, " AND ")
}

// writeLicences writes all texts, each under the names of those that have it.
func writeLicences(w io.Writer, parts []part) error {
	var out bytes.Buffer
	fmt.Fprintf(&out, "lbagent is linked with the following. Each has its licence and notices below.\n\n")
	for _, p := range parts {
		fmt.Fprintf(&out, "  %-14s %s %s\n", p.licence, p.name, p.version)
	}
	for _, p := range parts {
		for _, path := range p.texts {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, "\n%s\n%s %s: %s\n\n%s\n", strings.Repeat("=", 79), p.name, p.version, filepath.Base(path), bytes.TrimSpace(text))
		}
	}
	_, err := w.Write(out.Bytes())
	return err
}

type component struct {
	Type     string           `json:"type"`
	Ref      string           `json:"bom-ref"`
	Name     string           `json:"name"`
	Version  string           `json:"version"`
	PURL     string           `json:"purl,omitempty"`
	Hashes   []map[string]any `json:"hashes,omitempty"`
	Licences []map[string]any `json:"licenses"`
}

// writeSBOM has no date and no random number: the same binary has the same bill.
func writeSBOM(w io.Writer, binary, version string, info *debug.BuildInfo, parts []part) error {
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(program)
	id := sum
	id[6], id[8] = id[6]&0x0f|0x50, id[8]&0x3f|0x80 // a UUID made from a hash (RFC 9562 5.5)
	licence := func(expression string) []map[string]any { return []map[string]any{{"expression": expression}} }
	self := component{Type: "application", Ref: info.Main.Path, Name: "lbagent", Version: version, PURL: "pkg:golang/" + info.Main.Path, Licences: licence("Apache-2.0"),
		Hashes: []map[string]any{{"alg": "SHA-256", "content": hex.EncodeToString(sum[:])}}}
	var components []component
	var refs []string
	for _, p := range parts {
		components = append(components, component{Type: "library", Ref: p.purl, Name: p.name, Version: p.version, PURL: p.purl, Licences: licence(p.licence)})
		refs = append(refs, p.purl)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"serialNumber": fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16]),
		"metadata":     map[string]any{"component": self},
		"components":   components,
		"dependencies": []map[string]any{{"ref": self.Ref, "dependsOn": refs}},
	})
}
