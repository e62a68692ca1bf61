package lbagentv1

import "strings"

// ListFile is the name of the file in the agent's lists directory that holds the list of a service (SEMANTICS 6.6): the service's name, with a
// leading dot written as %2E, so that no list is hidden or taken for a temporary file. No service name has a %. A name of the longest kind (253 bytes) stays
// within the 255 of a file name.
//
// The file has one `host:port weight` per line, best first. Weight 0 means: only if every other one fails.
func ListFile(service string) string {
	if rest, ok := strings.CutPrefix(service, "."); ok {
		return "%2E" + rest
	}
	return service
}

// ListFileService is the inverse of ListFile.
func ListFileService(file string) string {
	if rest, ok := strings.CutPrefix(file, "%2E"); ok {
		return "." + rest
	}
	return file
}
