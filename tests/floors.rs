//! Compares the imports between the library's floors with the table in ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use syn::{
    UseTree,
    visit::{self, Visit},
};

/// The floors, from the lowest to the highest.
const FLOORS: [&str; 8] = [
    "hal",
    "transport",
    "fuse",
    "error",
    "session",
    "fs",
    "boot",
    "loader",
];

/// The modules of this crate whose names are in a file.
#[derive(Default)]
struct Named(BTreeSet<String>);

impl Named {
    /// Adds the first name after `crate` of each path.
    fn add(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => drop(self.0.insert(path.ident.to_string())),
            UseTree::Name(name) => drop(self.0.insert(name.ident.to_string())),
            UseTree::Rename(rename) => drop(self.0.insert(rename.ident.to_string())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add(tree)),
            UseTree::Glob(_) => drop(self.0.insert("*".into())),
        }
    }
}

impl Visit<'_> for Named {
    fn visit_use_path(&mut self, path: &syn::UsePath) {
        if path.ident == "crate" {
            self.add(&path.tree);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let mut segments = path.segments.iter();
        if segments.next().is_some_and(|first| first.ident == "crate")
            && let Some(module) = segments.next()
        {
            self.0.insert(module.ident.to_string());
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        if item.ident != "tests" && item.ident != "testing" {
            visit::visit_item_mod(self, item);
        }
    }
}

fn files_below(path: &Path, out: &mut Vec<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files_below(&entry.unwrap().path(), out);
        }
    } else if path.file_name().unwrap() != "tests.rs" {
        out.push(fs::read_to_string(path).unwrap());
    }
}

/// The module of each item that the crate re-exports at its root.
fn homes(src: &Path) -> BTreeMap<String, String> {
    let source = fs::read_to_string(src.join("lib.rs")).unwrap();
    let mut homes = BTreeMap::new();
    for item in syn::parse_file(&source).unwrap().items {
        if let syn::Item::Use(item) = item
            && let UseTree::Path(path) = &item.tree
        {
            let mut named = Named::default();
            named.add(&path.tree);
            homes.extend(
                named
                    .0
                    .into_iter()
                    .map(|name| (name, path.ident.to_string())),
            );
        }
    }
    homes
}

/// The other modules that each module of the crate names.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let homes = homes(&src);
    let modules = FLOORS.iter();
    modules
        .map(|&module| {
            let file = src.join(module).with_extension("rs");
            let path = if file.exists() {
                file
            } else {
                src.join(module)
            };
            let mut sources = Vec::new();
            files_below(&path, &mut sources);
            let mut named = Named::default();
            for source in &sources {
                named.visit_file(&syn::parse_file(source).unwrap());
            }
            let named = named.0.into_iter().map(|name| match homes.get(&name) {
                Some(home) => home.clone(),
                None => name,
            });
            let mut named: BTreeSet<_> = named.collect();
            named.remove(module);
            (module.to_string(), named)
        })
        .collect()
}

#[test]
fn every_module_is_on_a_floor() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let entries = fs::read_dir(src)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let modules = entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    let modules: BTreeSet<_> = modules.filter(|module| module != "lib").collect();
    assert_eq!(modules, FLOORS.map(str::to_owned).into());
}

#[test]
fn a_floor_names_only_those_below_it() {
    let floor_of = |module: &str| {
        let floor = FLOORS.iter().position(|floor| *floor == module);
        floor.unwrap_or_else(|| panic!("{module} is on no floor"))
    };
    for (module, named) in imports() {
        for other in named {
            assert!(
                floor_of(&other) < floor_of(&module),
                "src/{module} names {other}, which is not below it"
            );
        }
    }
}

/// The rows of the table in ARCHITECTURE.md are `| floor | module | names | ... |`.
#[test]
fn the_picture_in_architecture_md_is_what_the_code_imports() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs::read_to_string(path).unwrap();
    let cell = |cell: &str| -> BTreeSet<String> {
        let words = cell.split(['`', ',', ' ']);
        words
            .filter(|word| !word.is_empty())
            .map(String::from)
            .collect()
    };
    let mut drawn = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let ["", _, module, names, _, ""] = cells[..]
            && let Some(module) = module
                .strip_prefix("`src/")
                .and_then(|m| m.strip_suffix('`'))
        {
            drawn.insert(module.trim_end_matches(".rs").to_string(), cell(names));
        }
    }
    assert_eq!(drawn, imports());
}
