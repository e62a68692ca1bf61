// Package packaging holds what the .deb and the .rpm are made of, and the tests that install them; build.sh makes them.
package packaging
