//! Tests of an installation: packages, and the CI steps of examples/ci.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(all(feature = "embed-firmware", feature = "embed-init"))]
#[test]
fn the_version_lists_the_embedded_files() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootshare-host"));
    let output = command.arg("--version").output().unwrap();
    let output = text(&output.stdout);
    let mut lines = output.lines();
    let version = concat!("bootshare-host ", env!("CARGO_PKG_VERSION"));
    assert_eq!(lines.next().unwrap(), version);
    assert!(lines.next().unwrap().starts_with("commit: "), "{output}");
    let mut names = Vec::new();
    for line in lines {
        let (found, name) = line.split_once("  ").unwrap();
        let image = fs::read(root().join("target/firmware").join(name)).unwrap();
        assert_eq!(found, digest(&image), "{name}");
        names.push(name);
    }
    assert_eq!(names.len(), 6, "{output}");
}

#[cfg(all(feature = "embed-firmware", feature = "embed-init"))]
#[test]
fn images_do_not_contain_the_build_directory() {
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .unwrap();
    let root = root().canonicalize().unwrap();
    for name in [
        "bootshare-x86_64.elf",
        "bootshare-aarch64.elf",
        "init-x86_64",
        "init-aarch64",
    ] {
        let image = fs::read(root.join("target/firmware").join(name)).unwrap();
        let has = |text: &str| {
            image
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        assert!(has("/crates/"), "{name} names no source file of a package");
        for place in [root.to_str().unwrap(), &home] {
            assert!(!has(place), "{name} names {place}");
        }
    }
}

/// Runs the build script in a package with these files.
fn build(files: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("build-script");
    let status = Command::new("rustc")
        .args(["--edition", "2024", "-o"])
        .arg(&program)
        .arg(root().join("host/build.rs"))
        .status()
        .unwrap();
    assert!(status.success());
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Command::new(program)
        .env_clear()
        .env("CARGO_MANIFEST_DIR", dir.path())
        .output()
        .unwrap()
}

#[test]
fn a_package_with_images_of_another_commit_is_refused() {
    const PACKAGE: (&str, &str) = ("Cargo.toml.orig", "");
    const INFO: (&str, &str) = (
        ".cargo_vcs_info.json",
        "{\n  \"git\": {\n    \"sha1\": \"1234abcd\"\n  },\n  \"path_in_vcs\": \"host\"\n}",
    );
    let refused = |output: Output, what: &str| {
        let errors = text(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(what),
            "{errors}"
        );
        assert!(errors.contains("make package"), "{errors}");
    };
    refused(build(&[PACKAGE, INFO]), "images/COMMIT: No such file");
    let old = ("images/COMMIT", "1234abcc\n");
    refused(
        build(&[PACKAGE, INFO, old]),
        "the images are of commit 1234abcc",
    );
    refused(build(&[PACKAGE, old]), "the images are of commit 1234abcc");
    for commit in ["1234abcd\n", "1234abcd-dirty\n"] {
        let output = build(&[PACKAGE, INFO, ("images/COMMIT", commit)]);
        let said = text(&output.stdout);
        assert!(output.status.success(), "{}", text(&output.stderr));
        for line in [
            "cargo::rustc-cfg=carries=\"firmware\"",
            "cargo::rustc-cfg=carries=\"init\"",
            &format!("cargo::rustc-env=BOOTSHARE_COMMIT={}", commit.trim()),
        ] {
            assert!(said.lines().any(|said| said == line), "no {line} in {said}");
        }
    }
}

/// A directory with a release, the programs of QEMU, and the directories of a CI job. A program that prints its
/// arguments replaces the host tool.
struct Job {
    dir: TempDir,
    digest: String,
}

impl Job {
    fn new() -> Self {
        const PROGRAM: &str = "#!/bin/sh\necho \"told: $*\"\n[ \"$1\" != fail ]\n";
        let dir = tempfile::tempdir().unwrap();
        let arch = std::env::consts::ARCH;
        fs::write(
            dir.path()
                .join(format!("bootshare-host-0.1.0-{arch}-linux")),
            PROGRAM,
        )
        .unwrap();
        for name in ["x86_64", "aarch64"] {
            let path = dir.path().join(format!("qemu-system-{name}"));
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir(dir.path().join("bootshare")).unwrap();
        let digest = digest(PROGRAM.as_bytes());
        Self { dir, digest }
    }

    fn installed(&self) -> PathBuf {
        self.dir.path().join("bootshare/bootshare-host")
    }

    /// Runs a step like a runner of GitHub.
    fn step(&self, script: &str, variables: &[(&str, &str)]) -> Output {
        let dir = self.dir.path();
        let path = std::env::var("PATH").unwrap();
        let shown = dir.display();
        Command::new("bash")
            .args([
                "--noprofile",
                "--norc",
                "-e",
                "-o",
                "pipefail",
                "-c",
                script,
            ])
            .env("PATH", format!("{shown}/bootshare:{shown}:{path}"))
            .env("RUNNER_TEMP", dir)
            .env("GITHUB_PATH", dir.join("path"))
            .env("GITHUB_ACTION_PATH", root())
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }
}

/// The scripts of the action's steps.
fn steps() -> Vec<String> {
    let action = fs::read_to_string(root().join("action.yml")).unwrap();
    let scripts = action.split("      run: |\n").skip(1);
    scripts
        .map(|rest| {
            let lines = rest.lines().map_while(|line| line.strip_prefix("        "));
            lines.collect::<Vec<_>>().join("\n")
        })
        .collect()
}

#[test]
fn the_action_installs_a_release_with_the_right_digest_and_runs_it() {
    let steps = steps();
    let [install, run] = &steps[..] else {
        panic!("action.yml has {} scripts", steps.len());
    };
    let job = Job::new();
    let from = job.dir.path().to_str().unwrap();
    let other = digest(b"");
    let variables = |digest| [("VERSION", "0.1.0"), ("SHA256", digest), ("FROM", from)];

    let refused = job.step(install, &variables(&other));
    let errors = text(&refused.stderr);
    assert!(!refused.status.success(), "{errors}");
    assert!(
        errors.contains(&job.digest) && errors.contains("nothing is installed"),
        "{errors}"
    );
    assert!(!job.installed().exists());

    let output = job.step(install, &variables(&job.digest));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(job.installed().exists());
    let path = fs::read_to_string(job.dir.path().join("path")).unwrap();
    assert_eq!(path, format!("{from}/bootshare\n"));

    let console = || fs::read_to_string(job.dir.path().join("bootshare/console.txt")).unwrap();
    let ran = job.step(run, &[("COMMANDS", "bootshare-host boot 'a dir'")]);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert_eq!(console(), "told: boot a dir\n");
    // After a failure the console's file exists, and the step fails.
    let failed = job.step(run, &[("COMMANDS", "bootshare-host fail; echo not this")]);
    assert!(!failed.status.success());
    assert_eq!(console(), "told: fail\n");
}

#[test]
fn the_jobs_of_gitlab_run_the_same_scripts() {
    let template = fs::read_to_string(root().join("examples/ci/gitlab.yml")).unwrap();
    let commands = |head: &str| {
        let (_, rest) = template.split_once(&format!("  {head}:\n")).unwrap();
        let lines = rest.lines().map_while(|line| line.strip_prefix("    - "));
        lines.collect::<Vec<_>>().join("\n")
    };
    let job = Job::new();
    let ci = job.dir.path().join("ci");
    fs::create_dir(&ci).unwrap();
    fs::copy(root().join("examples/ci/install.sh"), ci.join("install.sh")).unwrap();
    let variables = [
        ("BOOTSHARE_VERSION", "0.1.0"),
        ("BOOTSHARE_SHA256", job.digest.as_str()),
        ("BOOTSHARE_FROM", job.dir.path().to_str().unwrap()),
        ("BOOTSHARE_RUN", "bootshare-host fail"),
    ];
    // The first line installs what the image already has. A job may write to /usr/local/bin.
    let before = commands("before_script");
    let (_, install) = before.split_once('\n').unwrap();
    let install = format!("{install} \"$RUNNER_TEMP/bootshare\"");
    let script = format!("cd \"$RUNNER_TEMP\"\n{install}\n{}", commands("script"));
    let output = job.step(&script, &variables);
    assert!(!output.status.success());
    let console = fs::read_to_string(job.dir.path().join("console.txt")).unwrap();
    assert_eq!(console, "told: fail\n", "{}", text(&output.stderr));
}
