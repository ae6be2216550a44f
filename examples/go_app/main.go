// Replicates a database from Go with mattn/go-sqlite3: a few commits, a wait until the bucket has them, the status.
//
// usage: go run . REPLICA_URL [DATABASE]
//
// The extension is dist/replicated.so of this repository (`make build`), found from the current directory, or REPLICATED_EXTENSION.
// modernc.org/sqlite and other translations of SQLite to Go have no VFS of SQLite's and do not work.
package main

import (
	"database/sql"
	"fmt"
	"log"
	"net/url"
	"os"
	"strings"

	sqlite3 "github.com/mattn/go-sqlite3"
)

// Registers the VFS, once a process, by a connection of its own: for a connection that loads it, it comes too late.
func load(extension string) error {
	sql.Register("sqlite3 with extension", &sqlite3.SQLiteDriver{Extensions: []string{extension}})
	loader, err := sql.Open("sqlite3 with extension", ":memory:")
	if err != nil {
		return err
	}
	defer loader.Close()
	// database/sql connects when it is used.
	return loader.Ping()
}

func run(replica, database string) error {
	extension := os.Getenv("REPLICATED_EXTENSION")
	if extension == "" {
		extension = "dist/replicated.so"
	}
	// A variable that begins with REPLICATED_ and is no option of ours refuses the open.
	os.Unsetenv("REPLICATED_EXTENSION")
	if err := load(extension); err != nil {
		return err
	}

	file := (&url.URL{Path: database}).EscapedPath()
	// A space is %20 to SQLite, and + is a plus.
	replica = strings.ReplaceAll(url.QueryEscape(replica), "+", "%20")
	db, err := sql.Open("sqlite3", "file:"+file+"?vfs=replicated&replica="+replica+"&_journal_mode=wal&_busy_timeout=5000")
	if err != nil {
		return err
	}
	// Connections of the pool are closed, and the last one waits for the bucket.
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)"); err != nil {
		return err
	}
	for _, text := range []string{"one from Go", "two from Go"} {
		if _, err := db.Exec("INSERT INTO notes(text) VALUES (?)", text); err != nil {
			return err
		}
	}

	for _, pragma := range []string{"PRAGMA replicated_sync", "PRAGMA replicated_status"} {
		var told string
		if err := db.QueryRow(pragma).Scan(&told); err != nil {
			return err
		}
		fmt.Println(told)
	}
	return nil
}

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: go run . REPLICA_URL [DATABASE]")
	}
	database := "app.db"
	if len(os.Args) > 2 {
		database = os.Args[2]
	}
	if err := run(os.Args[1], database); err != nil {
		log.Fatal(err)
	}
}
