// What the browser remembers, or this page alone where the browser lets it store nothing.

const here = new Map();

export function keep(storage, name, value) {
  here.set(name, value);
  try {
    storage().setItem(name, value);
  } catch {
    // It is forgotten when the page is left.
  }
}

export function recall(storage, name) {
  try {
    return storage().getItem(name) ?? here.get(name);
  } catch {
    return here.get(name);
  }
}
