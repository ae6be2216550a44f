'use strict';

// The extension's file and the command-line tool's, and what a driver needs to open a replicated database.

const path = require('node:path');

/** The extension's file, as `loadExtension` takes it. */
function getLoadablePath() {
  return path.join(__dirname, 'replicated.so');
}

/** The command-line tool: `replicated restore`, `list`, `verify`, ... */
function getToolPath() {
  return path.join(__dirname, 'replicated-tool');
}

/** Loads the extension with a connection of better-sqlite3 or node:sqlite (`allowExtension: true`), for the whole process. */
function load(db) {
  db.loadExtension(getLoadablePath());
}

/** The URI of a database that is replicated, for drivers that take one. */
function uri(database, options = {}) {
  const query = Object.entries({ vfs: 'replicated', ...options }).map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`);
  return `file:${path.resolve(database).split('/').map(encodeURIComponent).join('/')}?${query.join('&')}`;
}

module.exports = { getLoadablePath, getToolPath, load, uri };
