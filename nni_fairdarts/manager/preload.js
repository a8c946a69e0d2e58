// Repairs of NNI 3.0's manager, loaded by Node's --require (see environment.py, which sets NODE_OPTIONS).
//
// Every Node process that inherits the environment loads this file; only NNI's manager is touched, and the trial keeper
// that it starts on another machine. Their modules are repaired as they are loaded, on what they export; no file of NNI
// is written. Names below are NNI's.
'use strict';

const child_process = require('child_process');
const fs = require('fs');
const http = require('http');
const Module = require('module');
const net = require('net');
const path = require('path');

const HOST = process.env.NNI_FAIRDARTS_HOST || '127.0.0.1';
const RETRY = 1000; // milliseconds between two tries to place a waiting trial

// The REST server calls app.listen(port): every interface, no password, and what it answers can run code. Here every
// listener without a host of its own gets the chosen one. NNI's Python client, its tuner and its trials call
// "localhost", so an address that does not include it is joined by the loopback.
function bindListeners() {
    const listen = net.Server.prototype.listen;
    net.Server.prototype.listen = function (where, ...rest) {
        const port = typeof where === 'object' ? where?.port : where;
        const isPort = port !== '' && Number.isInteger(Number(port ?? NaN));
        if (!isPort || typeof rest[0] === 'string' || (typeof where === 'object' && where.host)) {
            return listen.call(this, where, ...rest);
        }
        if (typeof where === 'object') {
            return listen.call(this, { ...where, host: HOST }, ...rest);
        }
        if (!['127.0.0.1', '0.0.0.0', '::'].includes(HOST)) {
            this.once('listening', () => {
                const loopback = net.createServer(socket => this.emit('connection', socket));
                loopback.on('error', error => this.emit('error', error));
                listen.call(loopback, this.address().port, '127.0.0.1');
                loopback.unref();
            });
        }
        return listen.call(this, port, HOST, ...rest);
    };
}

// A page of any web site that the user's browser shows may call 127.0.0.1 as well: it needs no answer to do harm, and
// WebSockets (the tuner's channel among them) know no cross-origin rule. Browsers say from where a page is; programs
// say nothing. With the loopback alone, a name other than localhost is a site's that was pointed at this machine.
function refuseForeignPages() {
    const { emit } = http.Server.prototype;
    const isForeign = ({ origin, host = '', 'sec-fetch-site': site, 'sec-fetch-mode': mode }) => {
        const name = host.replace(/:\d+$/, '');
        const isOurs = !['127.0.0.1', '::1'].includes(HOST) || name === '' || name === 'localhost' || net.isIP(name.replace(/[[\]]/g, ''));
        const isFetched = site === 'cross-site' && mode !== 'navigate'; // a link is followed, nothing else
        return !isOurs || isFetched || (origin !== undefined && origin.replace(/^\w+:\/\//, '') !== host);
    };
    http.Server.prototype.emit = function (event, request, answer, ...rest) {
        if (!['request', 'upgrade'].includes(event) || !isForeign(request.headers)) {
            return emit.call(this, event, request, answer, ...rest);
        }
        if (event === 'request') {
            answer.writeHead(403).end('nni-fairdarts: refused, the call comes from a page of another site');
        } else {
            answer.destroy();
        }
        return true;
    };
}

// A trial is stopped by a signal to its shell alone. What a shell with more than one command started ("… | tee log")
// would go on for ever; as a process group all of it is reached.
function stopWholeTrials() {
    const { spawn } = child_process;
    child_process.spawn = (command, options, ...rest) => {
        const trial = options?.env?.NNI_TRIAL_JOB_ID;
        if (trial === undefined || trial === process.env.NNI_TRIAL_JOB_ID) {
            return spawn(command, options, ...rest);
        }
        const child = spawn(command, { ...options, detached: true }, ...rest);
        const signalGroup = signal => {
            try {
                return process.kill(-child.pid, signal);
            } catch { // nobody left
                return false;
            }
        };
        child.kill = signal => {
            child.once('exit', () => signalGroup('SIGKILL'));
            return signalGroup(signal);
        };
        return child;
    };
}

// TensorBoard is started with --bind_all, which opens it to every interface as well.
function bindTensorBoard({ NNITensorboardManager }) {
    const command = NNITensorboardManager.prototype.getTensorboardStartCommand;
    NNITensorboardManager.prototype.getTensorboardStartCommand = async function (...trials) {
        return (await command.apply(this, trials)).map(part => part.replace('--bind_all', `--host=${HOST}`));
    };
}

// Three faults of how trials are started (training_service/v3/compat.js):
// - Parameters wait in one queue and go to whichever trial asks first, while the trial they were meant for keeps them
//   in the records: with two trials at a time, or after one died before it asked, the web UI and the exports are wrong.
//   Here a trial has its id, and with it its parameters, before its process starts.
// - When no device is free it tries again in a loop that never gives the event loop a turn: the manager hangs for ever
//   with a core at 100 %, for it cannot even see that a trial ends. Here the trial waits as WAITING and the manager goes on.
// - TensorBoard is pointed at trials/ID/output, where trials of the local service never write.
function repairTrials({ V3asV1 }, require) {
    const { globals } = require('common/globals');
    const logger = require('common/log').getLogger('TrialQueue');
    const { uniqueString } = require('common/utils');
    const service = V3asV1.prototype;
    const { cancelTrialJob } = service;
    const trialFolder = (env, id) => path.join(globals.paths.experimentRoot, 'environments', env, 'trials', id);

    service.submitTrialJob = async function (form) {
        await this.startDeferred.promise;
        const trial = {
            id: form.id ?? uniqueString(5), // a resumed trial keeps its id and, where it can, its environment
            status: 'WAITING',
            submitTime: Date.now(),
            workingDirectory: '_unset_',
            url: '', // its folder, once it has one
            envId: form.envId,
            form,
        };
        this.trialJobs[trial.id] = trial;
        this.allocatedParameters.set(trial.id, form.hyperParameters.value);
        this.queued = [...(this.queued ?? []), trial];
        await this.placeQueued();
        return trial;
    };

    // Starts the waiting trials in their order, until one finds no place; then tries again after a pause.
    service.placeQueued = function () {
        const run = async () => {
            while (this.queued.length > 0 && globals.shutdown.processStatus !== 'stopping') {
                const trial = this.queued[0];
                if (trial.status === 'WAITING' && !(await this.place(trial))) {
                    clearTimeout(this.nextTry);
                    this.nextTry = setTimeout(() => this.placeQueued(), RETRY);
                    return;
                }
                this.queued.shift();
            }
        };
        this.placing = (this.placing ?? Promise.resolve()).then(run); // one at a time
        return this.placing;
    };

    service.place = async function (trial) {
        const { trialCommand } = this.config;
        const known = this.environments.some(env => env.id === trial.envId);
        for (let i = known ? -1 : 0; i < this.environments.length; i++) {
            const envId = i < 0 ? trial.envId : this.schedule(); // the environments in turn
            try {
                const { sequenceId } = trial.form;
                if ((await this.v3.createTrial(envId, trialCommand, 'trial_code', sequenceId, trial.id)) === null) {
                    continue;
                }
            } catch (error) {
                logger.error(`Cannot start trial ${trial.id} in ${envId}:`, error);
                continue;
            }
            const env = this.environments.find(one => one.id === envId);
            const remote = `~/nni-experiments/${globals.args.experimentId}/environments/${envId}/trials/${trial.id}`;
            trial.url = env?.host ? `${env.host}:${remote}` : trialFolder(envId, trial.id);
            trial.envId = envId;
            if (trial.isEarlyStopped !== undefined) {
                await this.v3.stopTrial(trial.id); // cancelled while it was being started
            }
            return true;
        }
        return false;
    };

    service.cancelTrialJob = async function (id, isEarlyStopped) {
        const trial = this.queued?.find(waiting => waiting.id === id);
        if (trial === undefined || trial.status !== 'WAITING') {
            return cancelTrialJob.call(this, id, isEarlyStopped);
        }
        trial.isEarlyStopped = Boolean(isEarlyStopped);
        trial.status = isEarlyStopped ? 'EARLY_STOPPED' : 'USER_CANCELED';
        trial.endTime = Date.now();
    };

    service.getTrialOutputLocalPath = async function (id) {
        return trialFolder(this.trialJobs[id]?.envId ?? 'local-env', id);
    };
}

// Two faults of handing out devices (common/trial_keeper/task_scheduler/scheduler.js):
// - It refuses as many devices as the machine has (>= for >): one of one is never given.
// - When gpuIndices or useActiveGpu leave no device, a trial that shares one reads a property of undefined.
// Also: with useActiveGpu false a device was refused for the process of another trial of ours, so that
// maxTrialNumberPerGpu did nothing; a decision was made on what had been seen for the decision before it; and CUDA may
// number devices otherwise than NVML, whose indices these are, unless it is told the order.
function repairScheduler({ TaskScheduler }, require) {
    const logger = require('common/log').getLogger('TaskScheduler');

    TaskScheduler.prototype.schedule = async function (experimentId, trialId, gpuNumber, restrictions = {}) {
        await this.update().catch(error => logger.error('Cannot look at the devices:', error)); // at most 10 s old
        const { onlyUseIndices, rejectActive, rejectComputeActive } = restrictions;
        const count = Math.max(1, Math.round(gpuNumber));
        const share = Math.min(1, gpuNumber);
        const free = gpu => gpu.util + share < 1.001;
        const others = gpu => gpu.util === 0 && ((rejectActive && gpu.active) || (rejectComputeActive && gpu.computeActive));
        const chosen = this.sortGpus({ onlyUseIndices }).filter(gpu => free(gpu) && !others(gpu)).slice(0, count);
        if (chosen.length < count) {
            return null;
        }
        for (const gpu of chosen) {
            gpu.util += share;
            this.trials.push({ gpuIndex: gpu.index, experimentId, trialId, util: share });
        }
        this.emitUpdate();
        const indices = chosen.map(gpu => gpu.index).sort((a, b) => a - b);
        logger.info(`Trial ${trialId} gets`, indices);
        return { CUDA_DEVICE_ORDER: 'PCI_BUS_ID', CUDA_VISIBLE_DEVICES: indices.join(',') };
    };
}

// What the devices do is to be asked once in 10 s, by a Python process, but the answer carries no time, so every question
// started a process: hundreds in the loop above. And the first question asks for the names of processes too: in a
// container, where there are none, all processes are lost with them, and every device seems idle.
function repairCollector(collector) {
    const { collectGpuInfo } = collector;
    collector.collectGpuInfo = async force => {
        let info = await collectGpuInfo(force);
        if (info?.failures?.some(failure => failure.startsWith('process'))) {
            info = await collectGpuInfo(false);
        }
        if (info !== null) {
            info.timestamp ??= Date.now();
        }
        return info;
    };
}

// On other machines NNI's trial keeper starts the trials, with the same faults: a port on every interface, the devices,
// the signals. It gets this file; of its port only its own trials make use. (A machine with Windows goes without.)
function repairKeepers({ Worker }) {
    const { launchTrialKeeperDaemon } = Worker.prototype;
    Worker.prototype.launchTrialKeeperDaemon = async function () {
        const { ssh } = this;
        const run = ssh.run.bind(ssh);
        ssh.run = async command => {
            const [, folder] = /launch_trial_keeper (\/.*)$/.exec(command) ?? [];
            if (folder === undefined) {
                return run(command);
            }
            const preload = `${folder}/preload.js`;
            await ssh.writeFile(preload, fs.readFileSync(__filename, 'utf8'));
            return run(`env NNI_FAIRDARTS_HOST=127.0.0.1 NODE_OPTIONS='--require "${preload}"' ${command}`);
        };
        try {
            return await launchTrialKeeperDaemon.call(this);
        } finally {
            delete ssh.run;
        }
    };
}

const REPAIRS = {
    'extensions/nniTensorboardManager.js': bindTensorBoard,
    'training_service/remote_v3/worker.js': repairKeepers,
    'training_service/v3/compat.js': repairTrials,
    'common/trial_keeper/task_scheduler/collect_info.js': repairCollector,
    'common/trial_keeper/task_scheduler/scheduler.js': repairScheduler,
};

function repair(folder) {
    const { version } = JSON.parse(fs.readFileSync(path.join(folder, 'package.json')));
    if (!version.startsWith('3.0')) {
        throw new Error(`nni-fairdarts repairs the manager of NNI 3.0, but ${folder} is version ${version}`);
    }
    bindListeners();
    refuseForeignPages();
    stopWholeTrials();
    const load = Module._extensions['.js'];
    Module._extensions['.js'] = (module, filename) => {
        load(module, filename);
        REPAIRS[path.relative(folder, filename)]?.(module.exports, name => module.require(name));
    };
}

// The manager, or a trial keeper.
const main = /^(.*[\\/]nni_node)[\\/](common[\\/]trial_keeper[\\/])?main\.js$/.exec(process.argv[1]);
if (main !== null) {
    repair(fs.realpathSync(main[1]));
}
